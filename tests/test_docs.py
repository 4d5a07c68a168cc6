"""The documentation: its links lead somewhere, its commands exist, and what the guides show is what happens.

In the pages of `WALKS` every fenced block is run, from top to bottom, in one folder (`PAGE#ANCHOR`: of one section):

* `console`: lines after `$ ` are commands, the rest is what they print. Shown output may be shortened by ` ... ` and
  wrapped; whole numbers are held to, those with a point or an exponent, byte counts and fingerprints are not. A last
  line `(exit code N)` is the exit code, 0 without it.
* `python file=NAME`: written to that file. `python`: a script. A `text` block right after one is what it prints.
* `not-run` in the first line, after the language: a GPU is needed; only parsed. `without=MODULE`: what is shown comes
  only where that is not installed. `needs=MODULE`: only where it is.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import repconv.cli

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "docs" / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
EXAMPLES = "docs/examples.md"
WALKS = (
    "docs/guide.md",
    "docs/pipelines.md",
    "docs/troubleshooting.md",
    f"{EXAMPLES}#1-an-ordinary-training-loop",
    f"{EXAMPLES}#2-a-yolo-onnx",
    f"{EXAMPLES}#3-int8-that-collapses",
    f"{EXAMPLES}#4-a-detector-of-your-own",
)
FENCE = re.compile(r"^```(\w+)?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXIT_CODE = re.compile(r"\n?\(exit code (\d+)\)\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands (page:line), its language, the words after that, and its text."""

    where: str
    language: str
    marks: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        return next((mark.removeprefix("file=") for mark in self.marks if mark.startswith("file=")), None)


@dataclass(frozen=True)
class Step:
    """A command or a Python script, and what the page shows of it."""

    where: str
    command: str = ""
    script: str | None = None
    shown: str = ""
    exit_code: int = 0


def blocks(page: str) -> list[Block]:
    """The blocks of a page, or of a section of it, `PAGE#ANCHOR`."""
    page, _, section = page.partition("#")
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [
        (m, Block(f"{page}:{text[: m.start()].count(chr(10)) + 1}", m[1] or "", tuple(m[2].split()), m[3]))
        for m in FENCE.finditer(text)
    ]
    if not section:
        return [block for _, block in found]
    starts = [(m.start(), anchor(m[1])) for m in re.finditer(r"^## (.+)$", text, re.MULTILINE)]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    ((start, end),) = [(start, end) for (start, name), end in zip(starts, ends, strict=True) if name == section]
    return [block for m, block in found if start < m.start() < end]


def console(block: Block) -> Iterator[tuple[str, str]]:
    """Commands of a console block, and what it shows of each."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command = re.match(r"(?:[^\n]*\\\n)*[^\n]*", part)[0]
        yield command.replace("\\\n", " "), part[len(command) :]


def steps(page: str) -> Iterator[Step | Block]:
    """What to do, in order: commands to run, and blocks that are files."""
    found = blocks(page)
    for block, following in zip(found, [*found[1:], None], strict=True):
        without = [mark.removeprefix("without=") for mark in block.marks if mark.startswith("without=")]
        needed = [mark.removeprefix("needs=") for mark in block.marks if mark.startswith("needs=")]
        lacking = not all(importlib.util.find_spec(name) for name in needed)
        if "not-run" in block.marks or lacking or any(importlib.util.find_spec(name) for name in without):
            continue
        if block.file:
            yield block
        elif block.language == "python":
            shown = following.text if following is not None and following.language == "text" else ""
            yield Step(block.where, script=block.text, shown=shown)
        elif block.language == "console":
            for command, shown in console(block):
                code = EXIT_CODE.search(shown)
                yield Step(
                    f"{block.where}: {command}",
                    command,
                    shown=EXIT_CODE.sub("", shown),
                    exit_code=int(code[1]) if code else 0,
                )


def comparable(text: str) -> str:
    """`text` without what differs from run to run, and with single spaces."""
    text = re.sub(r"\b[0-9a-f]{16,64}\b", "#", text)
    text = re.sub(r"\d[\d,]*(?= bytes)", "#", text)
    text = re.sub(r"\d+(?:\.\d+)+(?:e[+-]?\d+)?|\d+e[+-]?\d+", "#", text)
    text = re.sub(r"[▁▂▃▄▅▆▇█]", "#", text)
    return " ".join(re.sub(r"-{3,}", "---", text).split())


def absent(shown: str, printed: str) -> list[str]:
    """What is shown but not printed."""
    have = comparable(printed)
    return [
        piece
        for piece in map(str.strip, re.split(r"(?:^|(?<=\s))\.\.\.(?=\s|$)", comparable(shown)))
        if piece not in have
    ]


@pytest.fixture
def perform(monkeypatch, capfd, tmp_path) -> Iterator[Callable[[Step], tuple[int, str]]]:
    """Do a step in an empty folder; returns exit code and what was printed.

    In this process, where PyTorch is imported already: a page has some fifty commands.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def call(step: Step) -> tuple[int, str]:
        capfd.readouterr()
        code = 0
        if step.script is not None:
            exec(compile(step.script, step.where, "exec"), {"__name__": "__main__"})  # noqa: S102  # our own pages
        else:
            for command in step.command.split(" && "):
                monkeypatch.setattr(sys, "argv", shlex.split(command))
                assert sys.argv[0] == "repconv", f"{step.where}: {command} is no command of repconv"
                with pytest.raises(SystemExit) as ended:
                    repconv.cli.main()
                code = int(ended.value.code or 0)
        return code, "".join(capfd.readouterr()[::-1])

    yield call
    # Modules the pages write, which a user's next command would read anew.
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKS)
def test_what_a_page_shows_is_what_happens(page: str, perform, tmp_path: Path) -> None:
    wrong = []
    for step in steps(page):
        if isinstance(step, Block):
            (tmp_path / str(step.file)).write_text(step.text)
            continue
        code, printed = perform(step)
        lacking = absent(step.shown, printed)
        if code != step.exit_code or lacking:
            wrong.append(f"{step.where}\nexit code {code}, not printed: {lacking}; printed:\n{printed}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(perform) -> None:
    code = "\n".join(block.text for block in blocks("README.md") if block.language == "python")
    perform(Step("README.md", script=code))


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `repconv ...` line of every page, with where it stands."""
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        text = page.read_text(encoding="utf-8")
        for block in blocks(name):
            for command, _ in console(block) if block.language == "console" else ():
                yield block.where, shlex.split(command, comments=True)
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(r" {4,}\S*\b(repconv|torchrun|accelerate)\b", line):
                yield f"{name}:{number}", shlex.split(line.replace("$(which repconv)", "repconv"), comments=True)


COMMANDS = [
    pytest.param(words[words.index("repconv") + 1 :], id=f"{where} {' '.join(words)}"[:120])
    for where, words in commands()
    if "repconv" in words
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_in_the_docs_has_the_options_it_names(words: list[str]) -> None:
    if any(word in ("...", "--help") for word in words):
        words = [word for word in words if word != "..."][:1]
    command: click.Command = repconv.cli._repconv
    path = ["repconv"]
    context = click.Context(command, info_name="repconv")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{' '.join(path)} has no command {words[0]}"
        path.append(words[0])
        command, words = found, words[1:]
        context = click.Context(command, info_name=path[-1], parent=context)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} - known - {"--help", "--version"}
    assert not unknown, f"{' '.join(path)} has no option {', '.join(sorted(unknown))}"


def test_every_page_is_in_the_index() -> None:
    listed = {target.split("#")[0] for target in LINK.findall(INDEX.read_text(encoding="utf-8"))}
    missing = {page.name for page in INDEX.parent.glob("*.md")} - listed - {INDEX.name}
    assert not missing, f"docs/README.md does not name {', '.join(sorted(missing))}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return set(map(anchor, re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)))


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_example_is_run() -> None:
    text = (ROOT / EXAMPLES).read_text(encoding="utf-8")
    sections = {f"{EXAMPLES}#{anchor(heading)}" for heading in re.findall(r"^## (.+)$", text, re.MULTILINE)}
    assert sections == {page for page in WALKS if page.startswith(EXAMPLES)}
    assert {block.where for page in sections for block in blocks(page)} == {block.where for block in blocks(EXAMPLES)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        name, _, anchor = target.partition("#")
        if "://" in name:
            continue
        aim = page if not name else (page.parent / name).resolve()
        if not aim.exists() or (anchor and anchor not in anchors(aim)):
            broken.append(target)
    assert not broken, f"{page.name}: {', '.join(broken)}"


def test_every_schema_in_the_code_is_described() -> None:
    described = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    written = {
        name
        for folder in ("repconv", "search", "export")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r'"repconv\.([a-z-]+/\d+)"', path.read_text(encoding="utf-8"))
    }
    missing = sorted(name for name in written if name not in described)
    assert len(written) > 10
    assert not missing, f"docs/formats.md does not describe {', '.join(missing)}"


def test_messages_quoted_in_sentences_are_in_the_code() -> None:
    """Those that take a GPU, several processes or a long run to provoke."""
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for top in ("repconv", "search", "export")
        for path in (ROOT / top).rglob("*.py")
    )
    code = re.sub(r"\{[^{}]*\}", "#", re.sub(r'"\s*\n\s*f?"', "", code))
    prose = FENCE.sub("", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    quoted = [re.sub(r"\d+", "#", " ".join(text.split())) for text in re.findall(r'"([^"`]+)"', prose)]
    missing = [text for text in quoted if text.rstrip(".,") not in code]
    assert len(quoted) > 5
    assert not missing, missing

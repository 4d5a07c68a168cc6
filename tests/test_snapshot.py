"""What users build on does not change by accident: names, command lines, schemas, JSON fields, exit codes.

`python tests/test_snapshot.py` writes `tests/snapshot.json` anew, after a change that is meant. What is new may be
added without that; what was there must stay as it was.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "snapshot.json"
CHECKPOINT = ROOT / "repconv" / "assets" / "irep_resnet_cifar10.pt"
CODE = ("repconv", "search", "export", "benchmarks")
REPORTS = {
    "inspect": ["inspect", str(CHECKPOINT)],
    "fuse": ["fuse", str(CHECKPOINT), "-o", "fused.onnx"],
    "export": ["export", str(CHECKPOINT), "--to", "onnx", "-o", "exported.onnx"],
}


def command_line() -> click.Group:
    return importlib.import_module("repconv.cli")._repconv


def public_names() -> dict[str, list[str]]:
    modules = ("repconv", "repconv.graph", "repconv.export")
    return {name: sorted(importlib.import_module(name).__all__) for name in modules}


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every command with its parameters: how each is spelled, and whether it is required, a flag or repeated."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        elif command is not None:
            yield (
                f"{prefix}{name}",
                {
                    str(p.name): {
                        "spelled": sorted([*p.opts, *p.secondary_opts]),
                        "required": p.required,
                        "repeated": p.multiple if isinstance(p, click.Option) else p.nargs != 1,
                        "flag": bool(getattr(p, "is_flag", False)),
                    }
                    for p in command.params
                },
            )


def schemas() -> list[str]:
    text = "".join(path.read_text(encoding="utf-8") for top in CODE for path in sorted((ROOT / top).rglob("*.py")))
    return sorted(set(re.findall(r'"(repconv\.[a-z_-]+/\d+)"', text)))


def fields(value: object, path: str = "") -> Iterator[str]:
    """The paths of every field in JSON; of lists, those of all elements together."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if not re.search(r"[.\d/ ]", key):  # names of layers and packages are data
                yield f"{path}.{key}"
                yield from fields(part, f"{path}.{key}")
    elif isinstance(value, list):
        for part in value:
            yield from fields(part, f"{path}[]")


def reported(name: str) -> list[str]:
    """The fields a command leaves in its JSON, in the working directory."""
    result = CliRunner().invoke(command_line(), [*REPORTS[name], "--json", f"{name}.json"])
    assert result.exit_code == 0, result.output
    return sorted(set(fields(json.loads(Path(f"{name}.json").read_text(encoding="utf-8")))))


def exit_codes() -> dict[str, int]:
    """What each error of the package ends the command line with."""
    cli = importlib.import_module("repconv.cli")
    errors = importlib.import_module("repconv.errors")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RepconvError)]
    found = {}
    for kind in kinds:

        def fail(*_: object, kind: type[Exception] = kind) -> None:
            raise kind("words")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli._repconv, "invoke", fail)
            patch.setattr("sys.argv", ["repconv", "doctor"])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        found[kind.__name__] = ended.value.code
    return found


def kept() -> dict[str, Any]:
    return json.loads(KEPT.read_text(encoding="utf-8"))


def test_public_names_stay() -> None:
    names = public_names()
    for module, before in kept()["names"].items():
        assert not set(before) - set(names[module]), module


def test_command_lines_stay() -> None:
    now = dict(commands(command_line()))
    for command, parameters in kept()["commands"].items():
        assert command in now
        for name, before in parameters.items():
            after = now[command].get(name)
            assert after is not None, f"{command} lost {name}"
            assert set(before["spelled"]) <= set(after["spelled"]), f"{command} {name}"
            assert {**before, "spelled": 0} == {**after, "spelled": 0}, f"{command} {name}"


def test_schemas_stay() -> None:
    assert not set(kept()["schemas"]) - set(schemas())


def test_exit_codes_stay() -> None:
    assert kept()["exit_codes"].items() <= exit_codes().items()


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTS)
def test_json_fields_stay(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not set(kept()["fields"][name]) - set(reported(name))


def write() -> None:
    """The snapshot, anew."""
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        content = {
            "names": public_names(), "commands": dict(commands(command_line())), "schemas": schemas(),
            "exit_codes": exit_codes(), "fields": {name: reported(name) for name in REPORTS},
        }  # fmt: skip
    KEPT.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()

"""The folder of a run: configuration, metrics, populations, checkpoint; whole files or none."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from repconv.errors import CheckpointError, OutputError, RepconvError, SearchError
from repconv.files.whole import whole_file
from repconv.sources.state_dicts import read_content

from .supernet.architecture import read_json
from .supernet.records import ACCURACY, EPOCH, GENERATION, GROWTH, require

if sys.platform != "win32":
    import fcntl

CONFIG, ENVIRONMENT, METRICS, CHECKPOINT = "config.json", "environment.json", "metrics.jsonl", "checkpoint.pt"
RESULT, BEST, SUPERNET, POPULATIONS = "result.json", "best.arch.json", "supernet.pt", "populations"
PRICES = "prices.json"
FILES = (CONFIG, ENVIRONMENT, METRICS, CHECKPOINT, RESULT, BEST, SUPERNET, POPULATIONS, PRICES)
"""What a run's folder may hold, by name."""

SWEEP_PLAN = "sweep.json"
"""What makes a folder one of a sweep, whose runs have folders of their own below it."""

TENSORBOARD = "tensorboard"
LOCK = ".lock"
"""Held by the process that writes."""

_KINDS = (EPOCH, GENERATION, ACCURACY, GROWTH)
"""Of lines in the metrics."""

_UNFINISHED = re.compile(r"\..+\.(json|pt|svg)\.(repconv-)?\w{8}")
"""What `whole_file` calls a file before it is whole."""


@dataclass(frozen=True)
class RunFolder:
    """A run's files. Nothing is kept open, so a run may be killed at any moment."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> RunFolder:
        """A new run's folder, made if it is not there.

        Raises:
            OutputError: it cannot be written, or holds a run already, or a sweep.
        """
        folder = cls(path)
        if (path / SWEEP_PLAN).exists():
            raise OutputError(f"{path} holds a sweep, not a single run; name another folder")
        if (path / CONFIG).exists():
            raise OutputError(f"{path} holds a run already; go on with it (search resume), or name another folder")
        try:
            (path / POPULATIONS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {path}: {error.strerror or error}") from error
        folder.write_json(ENVIRONMENT, environment)
        folder.write_json(CONFIG, config)  # last: a folder with it is a run
        return folder

    @classmethod
    def create_or_resume(
        cls,
        path: Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        usual: Mapping[str, Any] = MappingProxyType({}),
    ) -> RunFolder:
        """The folder of the run of this very `config`, new or under way.

        usual: settings of a run begun before there were such, so that a newer version goes on with it.

        Raises:
            OutputError: it cannot be written, or holds another run.
        """
        if not (path / CONFIG).exists():
            return cls.create(path, config, environment)
        held = cls(path).read_json(CONFIG)
        if not isinstance(held, Mapping) or _decisive(usual, held) != _decisive(usual, config):
            raise OutputError(f"{path} holds a run with other settings or another architecture; name another folder")
        return cls(path)

    @classmethod
    @contextmanager
    def starting(
        cls,
        path: Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        usual: Mapping[str, Any] = MappingProxyType({}),
        *,
        resume: bool = False,
    ) -> Iterator[RunFolder]:
        """A new run's folder, which is gone again where an error ends the run before it learnt anything.

        resume: a folder of this very `config` is gone on with, and stays; usual: as of `create_or_resume`.

        Raises:
            OutputError: see `create` and `create_or_resume`.
        """
        there = {folder for folder in (path, *path.parents) if folder.exists()}
        begun = (path / CONFIG).exists()
        if resume:
            folder = cls.create_or_resume(path, config, environment, usual)
        else:
            folder = cls.create(path, config, environment)
        try:
            yield folder
        except RepconvError:
            if not begun and not any((path / name).exists() for name in (CHECKPOINT, METRICS)):
                for name in (CONFIG, ENVIRONMENT, PRICES, LOCK):
                    (path / name).unlink(missing_ok=True)
                shutil.rmtree(path / TENSORBOARD, ignore_errors=True)
                with suppress(OSError):  # somebody else's files are in one
                    for made in (path / POPULATIONS, path, *path.parents):
                        if made in there:
                            break
                        made.rmdir()
            raise

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that was started.

        Raises:
            SearchError: there is no run in it, or a sweep.
        """
        if (path / SWEEP_PLAN).exists():
            raise SearchError(f"{path} holds a sweep, not a single run; the line that began it goes on with it")
        if not (path / CONFIG).is_file():
            raise SearchError(f"{path} holds no run: it has no {CONFIG}; start one with search run")
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one that writes in it; whoever ends holds it no longer. Nothing where locks are unknown.

        Raises:
            OutputError: another process does, or nothing can be written there.
        """
        if sys.platform == "win32":
            yield
            return
        try:
            stream = (self.path / LOCK).open("ab")
        except OSError as error:
            raise OutputError(f"cannot write {self.path / LOCK}: {error.strerror or error}") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"{self.path}: its run is under way in another process; wait for that to end, or end it first"
                ) from None
            except OSError:
                pass  # a file system without locks
            yield

    def read_json(self, name: str, schema: str | None = None) -> Any:  # noqa: ANN401  # whatever the file holds
        """What one of its JSON files holds, which is as `schema` says where one is given.

        Raises:
            SearchError: it cannot be read, or is otherwise.
        """
        content = read_json(self.path / name)
        return content if schema is None else require(content, schema, str(self.path / name))

    def write_json(self, name: str, content: object) -> None:
        """Write a JSON file.

        Raises:
            OutputError: it cannot be written.
        """
        self.write_text(name, json.dumps(content, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file.

        Raises:
            OutputError: it cannot be written.
        """
        with whole_file(self.path / name) as stream:
            stream.write(text.encode())

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a line to the metrics.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with (self.path / METRICS).open("ab") as stream:
                stream.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path / METRICS}: {error.strerror or error}") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of the metrics; one that an interruption cut short is left out.

        Raises:
            SearchError: one makes no sense.
        """
        if not (self.path / METRICS).exists():
            return []
        lines = (self.path / METRICS).read_bytes().split(b"\n")[:-1]
        return [_metric(line, f"{self.path / METRICS}, line {i + 1}") for i, line in enumerate(lines)]

    def metrics_bytes(self) -> int:
        """The size of the metrics now."""
        file = self.path / METRICS
        return file.stat().st_size if file.exists() else 0

    def write_checkpoint(self, content: Mapping[str, Any]) -> None:
        """Replace the checkpoint; the one before stays where this fails.

        Raises:
            OutputError: it cannot be written.
        """
        # Into memory first: torch turns a full disk into errors of its own.
        buffer = io.BytesIO()
        torch.save(dict(content), buffer)
        with whole_file(self.path / CHECKPOINT) as stream:
            stream.write(buffer.getbuffer())

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, its tensors on the CPU whatever wrote them, None before the first.

        Raises:
            SearchError: it cannot be read.
        """
        file = self.path / CHECKPOINT
        if not file.exists():
            return None
        try:
            content: dict[str, Any] = read_content(file)[0]
        except CheckpointError as error:
            raise SearchError(f"{error}; the run cannot go on from it") from error
        return content

    def go_back(self, metrics_bytes: int) -> None:
        """Undo what was written after the checkpoint: later metrics, and files an interruption left half-written."""
        file = self.path / METRICS
        if file.exists():
            with file.open("r+b") as stream:
                stream.truncate(metrics_bytes)
        for left in (*self.path.glob(".*"), *(self.path / POPULATIONS).glob(".*")):
            if _UNFINISHED.fullmatch(left.name):
                left.unlink(missing_ok=True)


def _decisive(usual: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with what it leaves out, without which search found the architecture it trains."""
    whole = {**usual, **config}
    if isinstance(whole.get("architecture"), Mapping):
        whole["architecture"] = {key: value for key, value in whole["architecture"].items() if key != "search"}
    return whole


def _metric(line: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SearchError(f"{where} is no JSON: {error}") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in _KINDS:
        raise SearchError(f"{where} makes no sense: its kind is {kind!r}, expected one of {', '.join(_KINDS)}")
    found: dict[str, Any] = require(content, kind, where)
    return found

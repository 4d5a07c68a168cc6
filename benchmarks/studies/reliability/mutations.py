"""Damaged files of every format that is read: is each refused in words, within a minute and 2 GB?

Each trial changes a byte of a whole file, or cuts it short, and reads it as `inspect` does, in a process of its own.
What is read may be right after all: a byte of a name, or of padding. Run again, it goes on where it was; `--table`
writes the table of docs/reliability.md.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repconv import create_model, save
from repconv.benchmarks.studies.common import (
    ROOT,
    asking,
    head,
    kept_rows,
    markdown_table,
    positive,
    read_result,
    some_of,
    write_result,
    write_table,
)
from repconv.benchmarks.studies.reliability.trials import Trial, trial, warm

SCHEMA = "repconv.reliability_mutations/1"
SECONDS, MEMORY = 60.0, 2 << 30
CUTS = 30
"""Lengths at which a file is cut short."""

Reader = Callable[[Path], object]


def _network(path: Path) -> object:
    from repconv.blocks.inspection import inspect
    from repconv.sources.source import open_source

    return inspect(open_source(path).checkpoint.model)


def _weights(path: Path) -> object:
    from repconv.sources.source import open_source

    return open_source(path, model="irep_resnet18")


def _graph(path: Path) -> object:
    from repconv.export.from_source import foresee
    from repconv.sources.source import open_source

    opened = open_source(path)
    return opened.inputs, foresee(opened)


def _arrays(path: Path) -> object:
    from repconv.export.inputs.images import read_arrays

    return read_arrays(path)


def _images(path: Path) -> object:
    from repconv.export.inputs.images import read_images

    return read_images(f"imagefolder:{path}", (3, 8, 8), None, limit=8)


def _architecture(path: Path) -> object:
    from repconv.search.supernet.architecture import architecture_from_dict, read_json

    return architecture_from_dict(read_json(path))


def _sidecar(path: Path) -> object:
    from repconv.export.runtimes.engine_runtime import read_sidecar

    return read_sidecar(path.with_name(path.name.removesuffix(".json")))


def _artefact(path: Path) -> object:
    from repconv.export.artefacts.open import open_artefact

    return open_artefact(str(path)).inputs


FORMATS: dict[str, tuple[str, Reader]] = {
    ".pt": ("m.pt", _network), "state dict": ("s.pt", _weights), ".safetensors": ("m.safetensors", _network),
    ".onnx": ("m.onnx", _graph), ".pt2": ("m.pt2", _graph), ".npz": ("a.npz", _arrays), "image zip": ("i.zip", _images),
    "architecture": ("arch.json", _architecture), "engine's JSON": ("m.engine.json", _sidecar),
    ".tflite": ("m.tflite", _artefact), ".pte": ("m.pte", _artefact),
}  # fmt: skip
"""The name of a file of each format, and what reads it."""
BUILT = (".tflite", ".pte")
"""Formats of runtimes, which write them and read them in a process of their own."""


def make(folder: Path, formats: Sequence[str]) -> None:
    """Write a whole file of every format; of those of runtimes only where it is among `formats`."""
    import zipfile

    import onnx
    from PIL import Image

    from repconv.export.record import ENGINE_SCHEMA
    from repconv.export.targets import of_suffix
    from repconv.search.supernet.architecture import architecture_from_dict

    torch.manual_seed(0)
    model = create_model("irep_resnet18", width=4, blocks=(1,)).eval()
    for name in ("m.pt", "m.safetensors"):
        save(model, folder / name, input_shape=(3, 16, 16), class_names=list("abcdefghij"), metrics={"top1": 0.5})
    for target in map(of_suffix, sorted(set(formats).intersection(BUILT))):
        if target is not None:  # in a process of its own: what converts has threads, and forks of them hang
            code = "from repconv.cli import main; main()"
            to = ["--to", target.name, "-o", str(folder / f"m{target.suffix}")]
            subprocess.run([sys.executable, "-P", "-c", code, "export", str(folder / "m.pt"), *to], check=True)  # noqa: S603
            target.imported()
    torch.save({"epoch": 3, "model": model.state_dict()}, folder / "s.pt")
    weight = onnx.numpy_helper.from_array(np.ones((3, 3, 3, 3), np.float32), "w")
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        onnx.helper.make_node("Add", ["a", "x"], ["b"]),
        onnx.helper.make_node("Relu", ["b"], ["y"]),
    ]
    sizes: list[str | int | None] = ["n", 3, 8, 8]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, sizes)], [value("y", 1, sizes)], [weight])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(proto, str(folder / "m.onnx"))
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
    size = {0: torch.export.Dim("n", min=1, max=64)}
    program = torch.export.export(network, (torch.randn(2, 3, 8, 8),), dynamic_shapes=(size,))
    torch.export.save(program, folder / "m.pt2")
    np.savez_compressed(folder / "a.npz", x=np.arange(768, dtype=np.float32).reshape(4, 3, 8, 8), y=np.zeros(4))
    with zipfile.ZipFile(folder / "i.zip", "w") as archive:
        for name in ("a/1.png", "b/2.png"):
            stream = io.BytesIO()
            Image.new("RGB", (12, 9), (1, 2, 3)).save(stream, "png")
            archive.writestr(name, stream.getvalue())
    block = {"fixed": ["3x3"], "searchable": ["1x1", "skip"], "active": ["skip"]}
    arch = {"schema": "repconv.arch/1", "blocks": {"stem": block, "stages.0": block}}
    architecture_from_dict(arch)
    (folder / "arch.json").write_text(json.dumps(arch))
    texts = ("engine", "version", "sha256", "onnx_sha256", "source", "batch")
    sidecar: dict[str, Any] = {
        "schema": ENGINE_SCHEMA, "target": "tensorrt", "precision": "fp16", **dict.fromkeys(texts, "m"), "bytes": 1,
        "source_sha256": None, "not_run": "no GPU", "verified": False, "versions": {}, "observed": {},
        "capabilities": ["SM90"], "tensors": [{"name": "x", "dtype": "FLOAT", "shape": [1, 3, 8, 8]}], "gpu": None,
    }  # fmt: skip
    (folder / "m.engine.json").write_text(json.dumps(sidecar))


def damaged(whole: bytes, number: int, seed: int) -> bytes:
    """The file with damage number `number`: the first `CUTS` cut it short, each after them changes one byte."""
    random_of = random.Random(f"{seed}.{number}")  # noqa: S311  # damage, no secret
    if number < CUTS:
        return whole[: len(whole) * number // CUTS]
    content = bytearray(whole)
    at = random_of.randrange(len(content))
    content[at] ^= random_of.randrange(1, 256)
    return bytes(content)


def table_of(content: Mapping[str, Any]) -> str:
    """How the readings of each format ended."""
    columns = ("format", "bytes", "trials", "words", "ok", "else", "longest_s", "mebibytes")
    rows = [
        {
            **row,
            "else": sum(row[kind] for kind in ("traceback", "crash", "time", "memory")),
            "mebibytes": round(row["most_memory_bytes"] / 2**20, 1),
        }
        for row in content["rows"]
    ]
    heading = ("format", "bytes", "damaged", "refused in words", "read", "anything else", "longest, s", "memory, MiB")
    return markdown_table(heading, [[row[key] for key in columns] for row in rows])


def main() -> None:
    """Try every damage of every format that is not in the result yet."""
    parser = asking(__doc__, "reliability_mutations")
    parser.add_argument("--mutations", type=positive, default=300, help="bytes changed a format (%(default)s)")
    parser.add_argument(
        "--formats", type=some_of(list(FORMATS), "format"), default=[name for name in FORMATS if name not in BUILT]
    )
    parser.add_argument("--table", action="store_true", help="write the table of the page, and try nothing")
    asked = parser.parse_args()
    if asked.table:
        write_table(ROOT / "docs" / "reliability.md", asked.output.name, table_of(read_result(asked.output, SCHEMA)))
        return
    rows = kept_rows(asked.output, SCHEMA, "format")
    warm()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make(folder, asked.formats)
        for name in asked.formats:
            file, reader = FORMATS[name]
            whole = (folder / file).read_bytes()
            reader(folder / file) if name != ".pt2" else None  # what is whole is read; torch keeps threads of a program
            count = CUTS + asked.mutations
            if rows.get(name, {}).get("trials") == count:
                continue
            found = [_tried(folder / file, damaged(whole, n, 0), reader, folder / "log.txt") for n in range(count)]
            (folder / file).write_bytes(whole)
            rows[name] = _row(name, len(whole), found)
            asked_for = f"--mutations {asked.mutations}" if asked.mutations != 300 else ""
            limits = {"seconds": SECONDS, "memory_bytes": MEMORY, "cuts": CUTS}
            content = {**head(__file__, SCHEMA, asked_for), "limits": limits, "cpus": os.cpu_count()}
            write_result(asked.output, {**content, "rows": list(rows.values())})
            print(json.dumps({key: value for key, value in rows[name].items() if key != "said"}), flush=True)


def _tried(path: Path, content: bytes, reader: Reader, log: Path) -> Trial:
    path.write_bytes(content)
    return trial(lambda: reader(path), log, seconds=SECONDS, memory=MEMORY)


def _row(name: str, size: int, found: list[Trial]) -> dict[str, object]:
    kinds = Counter(outcome.kind for outcome in found)
    return {
        "format": name,
        "bytes": size,
        "trials": len(found),
        **{kind: kinds[kind] for kind in ("words", "ok", "traceback", "crash", "time", "memory")},
        "longest_s": round(max(outcome.seconds for outcome in found), 2),
        "most_memory_bytes": max(outcome.bytes for outcome in found),
        "said": sorted({f"{o.kind}: {o.said}" for o in found if o.kind not in ("words", "ok")}),
    }


if __name__ == "__main__":
    main()

"""`repconv demo`: the main job, on the checkpoint and the images that ship with the package."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .shared.command import Command, WritesFolder
from .shared.options import json_option

if TYPE_CHECKING:
    from ..proof.leaves import Function

_CHECKPOINT = "irep_resnet_cifar10.pt"
_IMAGES = "cifar10_test_sheet.npz"
_MOST_IMAGES = 1000
_WRITTEN = ("fused.pt", "fused.onnx", "report.html")


@click.command(cls=Command, epilog="Example: repconv demo --output-dir demo")
@click.option(
    "--output-dir",
    type=WritesFolder(lambda: _WRITTEN, path_type=Path),
    default="repconv-demo",
    show_default=True,
    help="Folder for the files it writes.",
)
@json_option
def command(output_dir: Path, json_file: str | None) -> None:
    """Fuse the network that ships with repconv, prove that nothing changed, and show what was gained."""
    import torch

    from repconv.benchmarks.harness.bench import bench
    from repconv.benchmarks.harness.page import bench_report
    from repconv.benchmarks.harness.settings import UNFUSED, BenchSettings
    from repconv.export.from_source import FuseSettings, fuse_source, write_fused
    from repconv.export.inputs.images import read_images
    from repconv.export.onnx.exporter import onnx_function

    from ..errors import OutputError, SourceError, VerificationError
    from ..files.whole import whole_file
    from ..sources.source import open_source
    from .shared.bench_text import differing, tables
    from .shared.record import file_record, write_json
    from .shared.text import fusion_tables, table

    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {output_dir}: {error.strerror}") from error
    assets = Path(str(files("repconv") / "assets"))
    source = open_source(str(assets / _CHECKPOINT))
    known = source.checkpoint
    model = known.model
    shape = known.input_shape or (3, 32, 32)
    sheet = read_images(str(assets / _IMAGES), shape, known.normalization, limit=_MOST_IMAGES)
    images, labels = sheet.inputs, sheet.labels
    if labels is None:
        raise SourceError(f"{_IMAGES} has no labels")

    accuracy = known.metrics.get("test_top1")
    trained = f" to {accuracy:.1%} test accuracy" if accuracy is not None else ""
    click.echo(f"1. Fuse {_CHECKPOINT}, an IRep-ResNet trained on CIFAR-10{trained}.\n")
    settings = FuseSettings(shape, dynamic_batch=True)
    try:
        fused = fuse_source(source, ".onnx", settings, inputs=[images[:1], images[:7]])
    except VerificationError as error:
        if error.report is not None:
            click.echo(fusion_tables(error.report) + "\n")
        raise
    report, in_runtime = fused.report, fused.in_runtime
    if fused.modules is None or in_runtime is None or report.agreement is None:  # as a network of blocks is fused
        raise VerificationError(f"{_CHECKPOINT} was not fused as modules and run in onnxruntime")
    click.echo(fusion_tables(report))
    click.echo(f"\n  {report.agreement.verdict}")

    click.echo("\n2. Write it, and run the ONNX file in onnxruntime.\n")
    written = {name: output_dir / name for name in _WRITTEN[:2]}
    write_fused(replace(fused, model=fused.modules), written["fused.pt"])
    write_fused(fused, written["fused.onnx"])
    for path in written.values():
        click.echo(f"  wrote {path}: {path.stat().st_size:,} bytes")
    click.echo(f"  {in_runtime.verdict}")

    click.echo(f"\n3. Classify {len(images)} real test images before and after.\n")
    onnx = onnx_function(written["fused.onnx"].read_bytes())
    forms: dict[str, Function] = {"before": model, "fused": fused.modules, "fused ONNX": onnx}
    with torch.inference_mode():
        answers = {name: run(images).argmax(1) for name, run in forms.items()}
    rows = [["", "right", "as before"]]
    for name, answer in answers.items():
        rows.append(
            [
                name,
                f"{int((answer == labels).sum())}/{len(labels)}",
                f"{int((answer == answers['before']).sum())}/{len(labels)}",
            ]
        )
    click.echo(table(rows, right=(1, 2)))
    astray = [i for i in range(len(images)) if len({int(a[i]) for a in answers.values()}) > 1]
    if astray:
        raise VerificationError(f"predictions differ on images {astray} of {_IMAGES}")

    click.echo("\n4. Latency of one image, in turns, each backend in a process of its own.\n")
    bench_settings = BenchSettings(
        backends=("torch", "onnxruntime"), against=UNFUSED, rounds=12, sessions=3, seconds=0.4, calls=24, warmup_s=0.1
    )
    result = bench([str(assets / _CHECKPOINT)], bench_settings)
    click.echo(tables(result))
    if result.differing or result.failed:
        raise VerificationError("; ".join(differing(result)))
    written["report.html"] = output_dir / _WRITTEN[2]
    with whole_file(written["report.html"]) as stream:
        stream.write(bench_report(result).encode())
    click.echo(f"\n  wrote {written['report.html']}: open it in a browser; repconv bench measures longer")

    click.echo(
        "\nNext, a model of your own:\n"
        "  train   model = repconv.create_model('irep_resnet18', num_classes=10)\n"
        "  save    repconv.save(model.eval(), 'checkpoint.pt', input_shape=(3, 32, 32))\n"
        "  fuse    repconv fuse checkpoint.pt -o fused.onnx --dynamic-batch"
    )
    if json_file is not None:
        write_json(
            json_file,
            "repconv.demo/1",
            {
                "source": file_record(assets / _CHECKPOINT),
                "outputs": [file_record(p) for p in written.values()],
                "report": report.to_dict(),
                "onnxruntime": in_runtime.to_dict(),
                "right": {name: int((a == labels).sum()) for name, a in answers.items()},
                "images": len(images),
                "bench": result.to_dict(),
            },
        )

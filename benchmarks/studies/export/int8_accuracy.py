"""What int8 costs the shipped network on CIFAR-10 test images: scales a channel or a tensor, equalised or not.

    python benchmarks/studies/export/int8_accuracy.py cifar10-train.zip cifar10-test.zip

Calibrated on 256 training images, measured on all test images of the zip, in onnxruntime and OpenVINO. The reference is
the unfused network in PyTorch, in float32.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import asking, existing, head, write_result
from repconv.export.artefacts.built import Run
from repconv.export.artefacts.runtime import build
from repconv.export.inputs.images import Images, read_images
from repconv.export.settings import BuildSettings, Quantization, Span
from repconv.export.subject import open_subject

CHECKPOINT = "repconv/assets/irep_resnet_cifar10.pt"
CALIBRATION_IMAGES, BATCH = 256, 64
FORMS: dict[str, Quantization | None] = {
    "fp32": None,
    "per channel": Quantization(per_channel=True),
    "per channel, equalised": Quantization(per_channel=True, equalise=True),
    "per tensor": Quantization(per_channel=False),
    "per tensor, equalised": Quantization(per_channel=False, equalise=True),
}


def settings_of(form: Quantization | None) -> BuildSettings:
    """What `repconv export` would be told; None is float32."""
    batch = Span(1, BATCH, BATCH)
    return BuildSettings(batch=batch) if form is None else BuildSettings("int8", batch, quantization=form)


def outputs(run: Run, images: Images) -> Tensor:
    """Class scores of all images, in batches."""
    parts = [run(images.inputs[i : i + BATCH])[0] for i in range(0, len(images), BATCH)]
    return torch.cat(parts)


def row(got: Tensor, wanted: Tensor, labels: Tensor) -> dict[str, object]:
    """Images met, agreement with the reference, and the rms error relative to it."""
    right, before = (int((t.argmax(1) == labels).sum()) for t in (got, wanted))
    return {
        "right": right,
        "images": len(labels),
        "accuracy": right / len(labels),
        "points_lost": 100 * (before - right) / len(labels),
        "top1_agreement": float((got.argmax(1) == wanted.argmax(1)).float().mean()),
        "rms_error": float((got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()),
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = asking(__doc__, "int8_accuracy")
    parser.add_argument("train", type=existing, help="zip of training images in folders by class")
    parser.add_argument("test", type=existing, help="zip of test images in folders by class")
    arguments = parser.parse_args()
    subject = open_subject(CHECKPOINT, settings_of(None))
    calibration, images = (
        read_images(
            f"imagefolder:{source}", subject.size, subject.normalization, limit=limit, class_names=subject.class_names
        )
        for source, limit in ((arguments.train, CALIBRATION_IMAGES), (arguments.test, 10**6))
    )
    if images.labels is None:
        raise SystemExit(f"{arguments.test} holds folders that are no classes of the network")
    wanted = outputs(subject.in_float32, images)
    batches = list(calibration.inputs.split(BATCH))
    rows: dict[str, object] = {"unfused, PyTorch": row(wanted, wanted, images.labels)}
    for target in ("onnx", "openvino"):
        for name, form in FORMS.items():
            settings = settings_of(form)
            spans = Span.of(subject.size[1]), Span.of(subject.size[2])
            given = batches if settings.precision == "int8" else None
            built = build(subject.model, target, settings, spans, given).load()
            if built.run is None:
                raise SystemExit(f"{target} cannot run here: {built.not_run}")
            found = row(outputs(built.run, images), wanted, images.labels) | {"runtime": built.runtime}
            rows[f"{target}, {name}"] = found
            print(f"{target}, {name}:", json.dumps(found), flush=True)
    told = {"calibration_images": CALIBRATION_IMAGES, "checkpoint": CHECKPOINT, "rows": rows}
    content = head(__file__, "repconv.int8_accuracy/1", "cifar10-train.zip cifar10-test.zip")
    write_result(arguments.output, {**content, "environment": environment(), **told})


if __name__ == "__main__":
    main()

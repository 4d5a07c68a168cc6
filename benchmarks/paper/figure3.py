"""Feature maps of a plain network and of an IRep network on the same images: the paper's heat maps, scaled down.

    python benchmarks/paper/figure3.py [--images 3,25,107,146] [--plain FILE] [--irep FILE]
    python benchmarks/paper/figure3.py --picture photo.jpg

The paper shows ResNet-50 and IRep-ResNet50 on ImageNet images: the image, the heat map of the last residual unit, and
those of units 4 to 11. Here it is the network that ships (width 16, six units, CIFAR-10) and the plain network of the
same shape trained by the same recipe (`benchmarks/studies/training/train_cifar10.py --network resnet18`), on images of
the sheet that
ships or on one of your own, scaled to 32x32. The paper does not say how a map's channels become one picture; here it is
the mean of their absolute values, from the smallest (dark) to the largest (yellow) of each map.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from repconv import fuse, load
from repconv.benchmarks.paper.architectures import SHIPPED
from repconv.benchmarks.paper.published.tables import SCALED
from repconv.benchmarks.studies.common import PICTURES, RESULTS, asking, existing, head, write_result
from repconv.benchmarks.studies.training.cifar10 import CLASSES, normalize
from repconv.files.whole import sha256, write_whole

SCHEMA = "repconv.paper.figure3/1"
PLAIN = RESULTS / "plain_resnet_cifar10.pt"
SHEET = SHIPPED.parent / "cifar10_test_sheet.npz"
SIDE, GAP = 96, 4
"""Pixels of a map in the picture, and between maps."""

_RAMP = np.array([[20, 16, 60], [47, 90, 170], [63, 170, 140], [250, 220, 70]], dtype=np.float64)


def network(path: Path) -> nn.Module:
    """A checkpoint's network, single-path, in evaluation mode."""
    return fuse(load(path).model.eval())[0]


def unit_maps(net: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The mean absolute value over channels of each residual unit's output [n, h, w], and the logits."""
    found: list[Tensor] = []
    stages = net.get_submodule("stages")
    hooks = [
        unit.register_forward_hook(lambda _module, _inputs, output: found.append(output.abs().mean(1)))
        for stage in stages.children()
        for unit in stage.children()
    ]
    with torch.inference_mode():
        logits = net(x)
    for hook in hooks:
        hook.remove()
    return found, logits


def coloured(values: Tensor) -> NDArray[np.uint8]:
    """A map [h, w] as an enlarged RGB picture [SIDE, SIDE, 3], from its smallest to its largest value."""
    low, high = float(values.min()), float(values.max())
    part = ((values - low) / (high - low if high > low else 1)).numpy()
    steps = np.linspace(0, 1, len(_RAMP))
    rgb = np.stack([np.interp(part, steps, _RAMP[:, c]) for c in range(3)], -1).round().astype(np.uint8)
    return np.asarray(Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.NEAREST))


def sheet(images: Tensor, maps: list[list[Tensor]]) -> bytes:
    """A PNG: two rows an image, plain above IRep; the image, the last unit's map, then those of all units before it."""
    rows = []
    for i, image in enumerate(images):
        photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        for of_units in maps:
            cells = [np.asarray(photo), *(coloured(unit[i]) for unit in (of_units[-1], *of_units[:-1]))]
            rows.append(
                np.concatenate([np.pad(c, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for c in cells], 1)
            )
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def chosen_images(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[Tensor, list[str]]:
    """Images [n, 3, 32, 32] in uint8, and what each is called."""
    if arguments.picture is not None:
        photo = Image.open(arguments.picture).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None], [arguments.picture.name]
    with np.load(SHEET) as held:
        pixels, labels = held["images"], held["labels"]
    places = [int(place) if place.strip().isdigit() else -1 for place in arguments.images.split(",")]
    if not all(0 <= place < len(pixels) for place in places):
        parser.error(f"--images are numbers from 0 to {len(pixels) - 1} with commas between, got {arguments.images!r}")
    names = [f"{CLASSES[labels[place]]} ({place})" for place in places]
    return torch.from_numpy(pixels[places]).permute(0, 3, 1, 2), names


def main() -> None:
    """Run both networks, write the picture and JSON."""
    parser = asking(__doc__, "paper_figure3")
    parser.add_argument("--images", default="3,25,107,146", help="places in the sheet that ships (%(default)s)")
    parser.add_argument("--picture", type=existing, help="an image of your own instead")
    parser.add_argument("--plain", type=existing, default=str(PLAIN), help="checkpoint of the plain network")
    parser.add_argument("--irep", type=existing, default=str(SHIPPED), help="checkpoint of the multi-branch network")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder (%(default)s)")
    arguments = parser.parse_args()
    images, names = chosen_images(arguments, parser)
    files = {"plain": arguments.plain, "irep": arguments.irep}
    results = {name: unit_maps(network(path), normalize(images)) for name, path in files.items()}
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    write_whole({arguments.pictures / "figure3.png": sheet(images, [maps for maps, _ in results.values()])})
    write_result(
        arguments.output,
        {
            **head(__file__, SCHEMA),
            "verdict": SCALED,
            "picture": "figure3.png",
            "why": "networks of width 16 and six units trained on CIFAR-10 for ten epochs; no ImageNet here",
            "images": names,
            "units": len(results["plain"][0]),
            "checkpoints": {name: {"file": path.name, "sha256": sha256(path)} for name, path in files.items()},
            "says": {name: [CLASSES[i] for i in logits.argmax(1)] for name, (_, logits) in results.items()},
        },
    )
    for name, (_, logits) in results.items():
        print(name, ", ".join(f"{image}: {CLASSES[i]}" for image, i in zip(names, logits.argmax(1), strict=True)))


if __name__ == "__main__":
    main()

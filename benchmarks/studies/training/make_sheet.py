"""Make the sheet of real test images that ships with the package: the first 20 of each class.

python benchmarks/studies/training/make_sheet.py cifar10-test.zip [FILE]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repconv.benchmarks.studies.common import ROOT, asking, existing
from repconv.benchmarks.studies.training.cifar10 import CLASSES, read_zip


def main() -> None:
    """Read the zip, write the sheet: `images` [n, 32, 32, 3] uint8 and `labels` [n] uint8."""
    parser = asking(__doc__)
    parser.add_argument("source", type=existing, help="zip of test images in folders by class")
    parser.add_argument("file", type=Path, nargs="?", default=ROOT / "repconv" / "assets" / "cifar10_test_sheet.npz")
    arguments = parser.parse_args()
    images, labels = read_zip(arguments.source)
    pick = np.concatenate([np.flatnonzero(labels.numpy() == c)[:20] for c in range(len(CLASSES))])
    pixels = images[pick].permute(0, 2, 3, 1).numpy()
    np.savez_compressed(arguments.file, images=pixels, labels=labels[pick].numpy().astype(np.uint8))
    print(f"{arguments.file}: {len(pick)} images, {arguments.file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

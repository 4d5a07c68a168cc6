"""Make the sheet of real test images that ships with the package: the first 20 of each class.

python benchmarks/studies/training/make_sheet.py cifar10-test.zip repconv/assets/cifar10_test_sheet.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from repconv.benchmarks.studies.training.cifar10 import CLASSES, read_zip


def main() -> None:
    """Read the zip, write the sheet: `images` [n, 32, 32, 3] uint8 and `labels` [n] uint8."""
    source, target = map(Path, sys.argv[1:3])
    images, labels = read_zip(source)
    pick = np.concatenate([np.flatnonzero(labels.numpy() == c)[:20] for c in range(len(CLASSES))])
    pixels = images[pick].permute(0, 2, 3, 1).numpy()
    np.savez_compressed(target, images=pixels, labels=labels[pick].numpy().astype(np.uint8))
    print(f"{target}: {len(pick)} images, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

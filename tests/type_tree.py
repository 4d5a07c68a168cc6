"""Lay out `build/types/repconv` the way the package installs, as links, for type checkers and editors.

The checkout keeps `search/`, `export/` and `benchmarks/` beside `repconv/`; type checkers cannot see that they install
below it: `python tests/type_tree.py && cd build/types && mypy -p repconv`. A strict editable install would show them
the same tree, but every new file would need the package installed again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    tree = ROOT / "build" / "types" / "repconv"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for part in (*(ROOT / "repconv").iterdir(), *(ROOT / name for name in ("search", "export", "benchmarks"))):
        (tree / part.name).symlink_to(part)

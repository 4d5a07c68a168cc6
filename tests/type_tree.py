"""Lay out `build/types/` the way the package installs, as links, for type checkers and editors.

The checkout keeps `search/`, `export/` and `benchmarks/` beside `repconv/`; setup.cfg maps them below it. Type checkers
cannot see that mapping, so they look at this tree: `python tests/type_tree.py && cd build/types && mypy -p repconv`.
"""

from __future__ import annotations

import configparser
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def mapped_packages(root: Path = ROOT) -> dict[str, Path]:
    """The packages setup.cfg lists, and the folder each is in."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    options = config["options"]
    folders = dict(line.split(" = ") for line in options["package_dir"].strip().splitlines())
    return {name: root / folders[name] for name in options["packages"].split()}


def main() -> None:
    """Remake the tree; a link a file, so that nothing of a folder's other contents shows."""
    tree = ROOT / "build" / "types"
    shutil.rmtree(tree / "repconv", ignore_errors=True)
    for name, folder in mapped_packages().items():
        package = tree.joinpath(*name.split("."))
        package.mkdir(parents=True)
        for source in [*folder.glob("*.py"), *folder.glob("py.typed")]:
            (package / source.name).symlink_to(source)


if __name__ == "__main__":
    main()

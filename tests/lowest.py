"""`python tests/lowest.py`: the lowest versions that setup.cfg promises, as pip takes them, and the tools of the tests.

`make lowest` installs exactly these. The ranges are those of `install_requires`; the tools have the versions of
constraints.txt, since users do not run the tests.
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("pytest", "hypothesis", "pillow")


def lowest() -> list[str]:
    """`NAME==VERSION` of every requirement.

    Raises:
        ValueError: one has no lower bound.
    """
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    found = []
    for line in setup["options"]["install_requires"].split():
        match = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,.*)?", line)
        if match is None:
            raise ValueError(f"setup.cfg: {line!r} has no lower bound such as name>=1.0")
        found.append(f"{match[1]}=={match[2]}")
    return found


def tools() -> list[str]:
    """The tests' own tools, as constraints.txt has them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line.partition(";")[0].strip() for line in lines if line.partition("==")[0] in TOOLS]


if __name__ == "__main__":
    sys.stdout.write("\n".join([*lowest(), *tools(), ""]))

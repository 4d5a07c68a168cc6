"""Public names of a package, each imported when it is first used, so that nothing waits for torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def public(
    package: str, homes: Mapping[str, str]
) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        homes: the names each of its modules holds, separated by blanks, by the module's relative name.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def get(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(home[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return sorted(home), get, lambda: sorted({*vars(sys.modules[package]), *home})

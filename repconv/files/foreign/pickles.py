"""What training scripts pickle beside their weights: read as stand-ins, described, never run.

torch reads a file with `weights_only=True`: tensors and plain containers. Files of training scripts hold more, such as
their command line. Classes that only hold values are read as stand-ins, for which nothing is imported; what else a
file holds makes it refused, and is named.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from .archives import Archive, is_archive

_HOLD_VALUES = (
    "argparse.Namespace", "types.SimpleNamespace",
    "builtins.complex", "builtins.slice", "builtins.range", "builtins.getattr", "builtins.object",
    "builtins.int", "builtins.float", "builtins.str", "builtins.bool", "builtins.list", "builtins.dict",
    "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta", "datetime.timezone",
    "decimal.Decimal", "fractions.Fraction", "uuid.UUID",
    "numpy.dtype", "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *(f"numpy.dtypes.{kind}{bits}DType" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Bool", "Str", "Bytes", "Object")),
    *(f"pathlib{module}.{name}Path" for module in ("", "._local") for name in ("", "Posix", "Windows", "Pure")),
    *(f"pathlib{module}.Pure{name}Path" for module in ("", "._local") for name in ("Posix", "Windows")),
    "torchvision.transforms.functional.InterpolationMode",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode", "typing.Any",
    "mmengine.logging.history_buffer.HistoryBuffer",
)  # fmt: skip
"""Classes and functions whose pickles hold values and nothing that weights need; a member of an enumeration is
pickled as `getattr` of its class."""

_ARE_DICTIONARIES = (
    "easydict.EasyDict", "addict.addict.Dict", "addict.Dict", "yacs.config.CfgNode", "fvcore.common.config.CfgNode",
    "ml_collections.config_dict.config_dict.ConfigDict", "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
    "timm.utils.model_ema.OrderedDict",
)  # fmt: skip
"""Classes that are dictionaries with attributes."""


class _StandIn:
    """In the place of an object that holds values: takes whatever it is made of, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _dictionary(*_: object) -> OrderedDict[Any, Any]:
    return OrderedDict()


def stands_in_for(name: str) -> bool:
    """Whether what a pickle calls `name` is read as a stand-in or as a plain container."""
    return name in {*_HOLD_VALUES, *_ARE_DICTIONARIES, "builtins.set", "builtins.frozenset", "collections.defaultdict"}


def stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """For `torch.serialization.safe_globals`: what may be made, and by what name it is asked for."""
    values: list[tuple[Callable[..., Any], str]] = [
        (type(name.rpartition(".")[2], (_StandIn,), {}), name) for name in _HOLD_VALUES
    ]
    dictionaries: list[tuple[Callable[..., Any], str]] = [(OrderedDict, name) for name in _ARE_DICTIONARIES]
    plain: list[tuple[Callable[..., Any], str]] = [(set, "builtins.set"), (frozenset, "builtins.frozenset")]
    return [*values, *dictionaries, *plain, (_dictionary, "collections.defaultdict")]


class _Named:
    """An object of a pickle, by the name of its class; making it makes nothing else."""

    name = ""

    def __new__(cls, *_: object, **__: object) -> _Named:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> _Named:
        return self

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        """Take an item, as a list does."""

    def extend(self, _: object) -> None:
        """Take items, as a list does."""


class _Describing(pickle._Unpickler):  # noqa: SLF001  # in Python: bounded memory
    """Reads a pickle without importing or calling anything: every class and function is a `_Named`."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  # pickle's signature
        if f"{module}.{name}" == "collections.OrderedDict":
            return OrderedDict
        return type(name, (_Named,), {"name": f"{module}.{name}"})

    def persistent_load(self, said: object) -> object:
        """A tensor's numbers, which do not matter here, or in older files a class with its source text."""
        return said[1] if isinstance(said, tuple) and said[:1] == ("module",) else None


def foreign_objects(stream: BinaryIO, allowed: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Where in a file of torch objects are that are not `allowed` by their class's name, and those names.

    What cannot be read tells nothing.
    """
    try:
        if is_archive(stream):
            archive = Archive(stream)
            name = next(name for name in archive.members if name.endswith("data.pkl"))
            content = _Describing(io.BytesIO(archive.read(name))).load()
        else:
            stream.seek(0)
            parts = [_Describing(stream).load() for _ in range(4)]  # a magic number, a version, the machine's sizes
            content = parts[3]
    except Exception:  # noqa: BLE001  # damaged files raise anything
        return []
    return [(path, name) for path, name in _walk(content, "", set()) if not allowed(name)]


def _walk(value: object, path: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    if isinstance(value, _Named) or (isinstance(value, type) and issubclass(value, _Named)):
        yield path, value.name
    elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in items:
            yield from _walk(part, f"{path}.{key}" if path else str(key), seen)


def is_script(stream: BinaryIO) -> bool:
    """Whether a file is a TorchScript archive, which holds a program."""
    if not is_archive(stream):
        return False
    names = Archive(stream).members
    return any(name.endswith("/constants.pkl") for name in names)

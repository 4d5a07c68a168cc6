"""Networks of other packages, and of the user's own, by name."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from torch import nn

from ..errors import BackendError, SourceError
from .spec import ModelSpec

LIBRARIES = ("timm", "torchvision")
"""Packages whose networks are made by name; any other name is a user's own code."""


def is_own_code(name: str) -> bool:
    """Whether making the network of this name runs code that is neither this package's nor a library's."""
    return ":" in name and name.partition(":")[0] not in LIBRARIES


def check_asked(name: str, asked: Collection[str], option: str, what: str) -> None:
    """Refuse code that a file names, unless the user named it, too.

    Args:
        name: `package.module:factory`, as the file has it.
        asked: what the user named.
        option: of the command line that names it.
        what: what it makes and which file says so, for the message.

    Raises:
        SourceError: nobody asked for it.
    """
    if name not in asked:
        raise SourceError(
            f"{what} is made by {name}, which is no code of this package and is not run because a file names it; if "
            f"you trust it, say so: {option} {name}"
        )


def create_named(name: str, weights: str | None = None, arguments: Mapping[str, object] | None = None) -> nn.Module:
    """The network of a name with a colon; it keeps name and arguments as `model.spec`.

    Args:
        name: `timm:NAME`, `torchvision:NAME` or `package.module:factory`, resolved from the working directory; with
            arguments as Python writes them, `timm:resnet18(num_classes=10)`; `folder/module.py:factory` is
            `folder.module:factory`.
        weights: of the library, by its name for them; it may have to fetch them.
        arguments: by name, besides those in the name.

    Raises:
        SourceError: there is no such network, it has no such weights, or making it failed.
        BackendError: the library is not installed.
    """
    name, said = parsed(name)
    given = {**said, **(arguments or {})}
    home, _, entry = name.partition(":")
    if home == "timm":
        network = _timm(entry, weights, given)
    elif home == "torchvision":
        network = _torchvision(entry, weights, given)
    else:
        network = Factory(name)(**given)
    if not isinstance(getattr(network, "spec", None), ModelSpec):
        network.spec = ModelSpec(name, given)  # type: ignore[assignment]
    return network


def parsed(name: str) -> tuple[str, dict[str, object]]:
    """A name without the arguments it may have behind it, as a module and not as a file; and those.

    Raises:
        SourceError: the arguments are none.
    """
    bare, opened, rest = name.partition("(")
    home, _, entry = bare.partition(":")
    if home.endswith(".py"):
        parts = Path(home).with_suffix("").parts
        home = ".".join(part for part in parts if part != ".")
    if not opened:
        return f"{home}:{entry}", {}
    try:
        call = ast.parse(f"_({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("not KEY=VALUE")
        return f"{home}:{entry}", {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise SourceError(
            f"{name}: expected arguments such as (num_classes=10, act='silu'), numbers, texts and lists ({error})"
        ) from error


def image_shape(network: nn.Module) -> tuple[int, int, int] | None:
    """(c, h, w) of the images that a network is made for, as far as its library says; None where it says nothing.

    A network of this package: 224 pixels a side with the ImageNet stem, 32 without.
    """
    spec = getattr(network, "spec", None)
    if isinstance(spec, ModelSpec) and ":" not in spec.name:
        channels, side = spec.arguments.get("in_channels", 3), 224 if spec.arguments.get("stem") == "imagenet" else 32
        return (channels, side, side) if isinstance(channels, int) else None
    home, _, entry = spec.name.partition(":") if isinstance(spec, ModelSpec) else ("", "", "")
    if home == "timm":
        known = getattr(network, "pretrained_cfg", {}).get("input_size")
        return (int(known[0]), int(known[1]), int(known[2])) if known is not None and len(known) == 3 else None
    if home == "torchvision":
        from torchvision import models

        with contextlib.suppress(AttributeError, ValueError, TypeError):
            # What its own weights were measured with says it: 224, 299, ...
            side = models.get_model_weights(entry).DEFAULT.transforms().crop_size[0]
            return (3, int(side), int(side))
    return None


def _timm(entry: str, weights: str | None, arguments: Mapping[str, object]) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise BackendError("timm is not installed; install it with: pip install timm") from None
    if not timm.is_model(entry):
        near = timm.list_models(f"*{entry}*")[:3]
        raise SourceError(f"timm has no model {entry!r}" + (f"; near it: {', '.join(near)}" if near else ""))
    tagged = entry if weights in (None, "pretrained") else f"{entry}.{weights}"
    with _foreign(f"timm:{tagged}"):
        network: nn.Module = timm.create_model(tagged, pretrained=weights is not None, **arguments)
    return network


def _torchvision(entry: str, weights: str | None, arguments: Mapping[str, object]) -> nn.Module:
    try:
        from torchvision import models
    except ImportError:
        raise BackendError("torchvision is not installed; install it with: pip install torchvision") from None
    if entry not in models.list_models():
        near = [n for n in models.list_models() if entry in n][:3]
        raise SourceError(f"torchvision has no model {entry!r}" + (f"; near it: {', '.join(near)}" if near else ""))
    # Left alone, those with a backbone fetch weights for it, whatever is loaded into them afterwards.
    backbone = {"weights_backbone"} & inspect.signature(models.get_model_builder(entry)).parameters.keys()
    with _foreign(f"torchvision:{entry}"):
        network: nn.Module = models.get_model(entry, **{**dict.fromkeys(backbone), **arguments, "weights": weights})
    return network


class Factory:
    """A user's `package.module:factory`, resolved from the working directory; calling it makes the network.

    Raises:
        SourceError: there is no such thing, or it fails.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        module, _, attribute = name.partition(":")
        with _working_directory(), _foreign(name):
            found: object = importlib.import_module(module)
        for part in attribute.split("."):
            if part not in dir(found):
                known = [n for n in dir(found) if not n.startswith("_")]
                raise SourceError(f"{name}: no {part!r} in it; it has {', '.join(known[:8]) or 'nothing'}")
            found = getattr(found, part)
        self.call = found

    def __call__(self, **arguments: object) -> nn.Module:
        """The network it makes."""
        if isinstance(self.call, nn.Module):
            if arguments:
                raise SourceError(f"{self.name} is a network already, which takes no {', '.join(arguments)}")
            return self.call
        if not callable(self.call):
            raise SourceError(f"{self.name} is a {type(self.call).__name__}, expected a function that makes a network")
        self._require_arguments(arguments)
        with _working_directory(), _foreign(self.name):
            network = self.call(**arguments)
        if not isinstance(network, nn.Module):
            raise SourceError(f"{self.name} returned a {type(network).__name__}, expected a torch.nn.Module")
        return network

    @property
    def parameters(self) -> tuple[inspect.Parameter, ...]:
        """What it takes by name; none where it does not tell."""
        if isinstance(self.call, nn.Module):
            return ()
        try:
            found = inspect.signature(self.call).parameters.values()  # type: ignore[arg-type]  # if not, it is caught
        except (ValueError, TypeError):
            return ()
        return tuple(p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))

    def _require_arguments(self, given: Mapping[str, object]) -> None:
        asked = [p.name for p in self.parameters if p.default is p.empty and p.name not in given]
        if asked:
            takes, give = ", ".join(p.name for p in self.parameters), " ".join(f"--arg {name}=VALUE" for name in asked)
            raise SourceError(f"{self.name} takes {takes}; give {give}")


@contextlib.contextmanager
def _working_directory() -> Iterator[None]:
    """Let imports find the user's modules."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextlib.contextmanager
def _foreign(name: str) -> Iterator[None]:
    """Somebody else's code: what it raises is reported with where, instead of a traceback."""
    try:
        yield
    except Exception as error:  # anything may come out of it
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        at = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})" if trace else ""
        raise SourceError(f"{name} failed: {type(error).__name__}: {error}{at}") from error

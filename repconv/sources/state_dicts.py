"""State dicts as people save them: found in their wrapping, checked, and put into a network.

Files are read without executing anything they hold: `.safetensors`, or torch's format with `weights_only=True`.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files.archives import Archive, ArchiveError, is_archive

WRAPPINGS = ("model_ema", "ema", "state_dict_ema", "ema_state_dict", "state_dict", "model", "model_state_dict", "net")
"""Keys under which checkpoints keep their weights. Averaged weights come first: they are what people evaluate."""

SHOWN = 4
"""How many names of a kind an error lists."""


def read_content(path: str | os.PathLike[str]) -> tuple[Any, Mapping[str, str]]:
    """What a weight file holds, and the metadata of a `.safetensors` file.

    Raises:
        CheckpointError: missing, a directory, damaged, of another format, or holding pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a directory' if path.is_dir() else 'no such file'}; name a weight file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty; was the disk full when it was written?")
    return _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path), {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
            return state, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable .safetensors file ({_first_line(error)})") from error


def _read_torch(path: Path) -> Any:  # noqa: ANN401  # whatever was saved
    try:
        with path.open("rb") as stream:
            if is_archive(stream):
                Archive(stream).check()  # torch itself compares no check sums
                stream.seek(0)
            return torch.load(stream, map_location="cpu", weights_only=True)
    except ArchiveError as error:
        raise CheckpointError(f"{path}: the file is damaged: {error}; fetch or save it again") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a readable file of tensors and plain values: it may hold pickled Python objects, such as a "
            "whole module, which are never executed here. Where its code is at hand, load it there and write "
            "torch.save(model.state_dict(), path), then name the network with --model"
        ) from error
    except Exception as error:  # torch raises many types for a damaged file
        raise CheckpointError(f"{path}: not a readable file of tensors ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def find_state(content: object, path: str | os.PathLike[str], key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The state dict in what a file holds, and a note on where it was ("" if bare).

    Args:
        content: of `read_content`.
        path: for messages.
        key: under which the weights are, instead of the first of `WRAPPINGS`.

    Raises:
        CheckpointError: there is none.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict, bare or wrapped")
    if key is not None:
        if key not in content:
            raise CheckpointError(f"{path}: has no key {key!r}; its keys are {_some(map(str, content))}")
        inner, note = content[key], f"weights under {key!r}"
    else:
        present = [name for name in WRAPPINGS if isinstance(content.get(name), Mapping)]
        if not present:
            inner, note = content, ""
        else:
            inner, note = content[present[0]], f"weights under {present[0]!r}"
            if len(present) > 1:
                note += f" (also there: {', '.join(present[1:])}; --state-key chooses)"
    state = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path}: no tensors in it; its keys are {_some(map(str, inner)) or 'none'}")
    return state, note


def strip_prefix(state: Mapping[str, Tensor], wanted: Sequence[str]) -> tuple[dict[str, Tensor], str]:
    """`state` without what wrappers put before its names (`module.`, `_orig_mod.`, `model.`), and a note of that.

    The prefix is the one that makes most of `wanted` appear; names that lack it belong to the wrapper and are left out.
    """
    unwrapped = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    prefixes = {""}
    for name in unwrapped:
        parts = name.split(".")
        prefixes.update(".".join(parts[:n]) + "." for n in range(1, min(4, len(parts))))
    known = set(wanted)
    sizes = {p: sum(n.startswith(p) and n[len(p) :] in known for n in unwrapped) for p in sorted(prefixes, key=len)}
    best = max(sizes, key=lambda p: sizes[p])
    if not best:
        return unwrapped, ""
    left_out = [name for name in unwrapped if not name.startswith(best)]
    note = f"prefix {best!r} taken off" + (f", left out: {_some(left_out)}" if left_out else "")
    return {name[len(best) :]: t for name, t in unwrapped.items() if name.startswith(best)}, note


def put_state(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Make `state` the parameters and buffers of `model`, which may be on the meta device.

    Raises:
        CheckpointError: names are missing, unexpected or of another shape, or numbers cannot be weights: NaN, Inf, a
            negative running variance.
    """
    wanted = model.state_dict()
    # Counters that older files lack start at zero and play no part in evaluation.
    counters = {n: torch.zeros((), dtype=torch.long) for n in wanted if n.endswith("num_batches_tracked")}
    state = {**counters, **state}
    complaints = [
        *_missing(wanted, state),
        *_unexpected(wanted, state),
        *_misshapen(wanted, state),
    ]
    if complaints:
        raise CheckpointError(f"{where}: the weights do not fit the network: {'; '.join(complaints)}")
    check_numbers(state, where)
    # Assigning keeps the file's dtype and takes no second copy, but would untie tied weights of a built network.
    model.load_state_dict(dict(state), assign=any(p.is_meta for p in model.parameters()))


def check_numbers(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse what no trained network holds.

    Raises:
        CheckpointError: a NaN, an Inf or a negative running variance, by name.
    """
    floats = {name: t for name, t in state.items() if t.is_floating_point()}
    broken = [name for name, t in floats.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise CheckpointError(f"{where}: NaN or Inf in {_some(broken)}; the training may have diverged")
    negative = [name for name, t in floats.items() if name.endswith("running_var") and bool((t < 0).any())]
    if negative:
        raise CheckpointError(f"{where}: negative running variance in {_some(negative)}; the file is damaged")


def _missing(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    names = [name for name in wanted if name not in state]
    return [f"{len(names)} missing ({_some(names)})"] if names else []


def _unexpected(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    names = [name for name in state if name not in wanted]
    near = [(name, get_close_matches(name, wanted, 1)) for name in names[:SHOWN]]
    described = [f"{name}, nearest {match[0]}" if match else name for name, match in near]
    more = f"; {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{len(names)} unexpected ({'; '.join(described)}{more})"] if names else []


def _misshapen(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    pairs = [(n, tuple(state[n].shape), tuple(wanted[n].shape)) for n in wanted if n in state]
    wrong = [f"{n}: {got} in the file, {want} in the network" for n, got, want in pairs if got != want]
    return [f"{len(wrong)} of another shape ({_some(wrong)})"] if wrong else []


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more

"""State dicts as people save them: found in their wrapping, checked, and put into a network.

Files are read without executing anything they hold: `.safetensors`, or torch's format with `weights_only=True`.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, first_line
from ..files.foreign.archives import Archive, ArchiveError, is_archive
from ..files.foreign.pickles import foreign_objects, is_script, stand_ins, stands_in_for

WRAPPINGS = (
    "model_ema", "ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema", "state_dict", "model",
    "model_state_dict", "params", "net", "network", "module", "weights",
)  # fmt: skip
"""Keys under which checkpoints keep their weights. Averaged weights come first: they are what people evaluate."""

SHOWN = 4
"""How many names of a kind an error lists."""
PAIRED = 12
"""How many misfits it shows beside what they may have been."""
_REPEATED = 2**30
"""Bytes that a tensor may be said to have without having them, as an expanded one does."""
_WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEPTH = 3
"""How deep in dictionaries weights are looked for."""


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
        raise CheckpointError(f"{path}: not a readable .safetensors file ({first_line(error)})") from error


def _read_torch(path: Path) -> Any:  # noqa: ANN401  # whatever was saved
    try:
        with path.open("rb") as stream:
            if is_archive(stream):
                Archive(stream).check()  # torch itself compares no check sums
                if is_script(stream):
                    raise CheckpointError(
                        f"{path}: a TorchScript archive, which is a program and no file of weights. Where it may be "
                        "run, torch.save(torch.jit.load(path).state_dict(), 'weights.pt') writes its weights; name the "
                        "network with --model. Or export it to ONNX there, and give that"
                    )
                stream.seek(0)
            with torch.serialization.safe_globals(stand_ins()):
                return torch.load(stream, map_location="cpu", weights_only=True)
    except ArchiveError as error:
        raise CheckpointError(f"{path}: the file is damaged: {error}; fetch or save it again") from error
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        held = _objects(path)
        said = f"it holds {held}" if held else "it may hold pickled Python objects, such as a whole module"
        raise CheckpointError(
            f"{path}: not a readable file of tensors and plain values: {said}, which are never executed here. Where "
            "its code is at hand, load it there and write torch.save(model.state_dict(), path), then name the network "
            "with --model"
        ) from error
    except Exception as error:  # torch raises many types for a damaged file
        raise CheckpointError(f"{path}: not a readable file of tensors ({first_line(error)})") from error


def _objects(path: Path) -> str:
    """The pickled objects in a file that are not read, by class and key."""
    with path.open("rb") as stream:
        found = foreign_objects(stream, lambda name: stands_in_for(name) or _is_torchs(name))
    told = [f"{name} under {key!r}" if key else f"a whole {name}" for key, name in found]
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return "pickled Python objects (" + ", ".join(told[:SHOWN]) + more + ")" if told else ""


def _is_torchs(name: str) -> bool:
    """Whether torch itself reads it: what tensors are rebuilt of, types and sizes."""
    home, _, last = name.rpartition(".")
    return home in ("torch._utils", "torch._tensor") or (home == "torch" and last in vars(torch))


def find_state(content: object, path: str | os.PathLike[str], key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The state dict in what a file holds, and a note on where it was ("" if bare).

    Args:
        content: of `read_content`.
        path: for messages.
        key: where the weights are, keys and the beginning of names joined by dots, instead of the first of
            `WRAPPINGS`, or of the one place where there are any.

    Raises:
        CheckpointError: there is none, or there are several and nothing says which.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict, bare or wrapped")
    places = list(_places(content))
    if key is not None:
        inner, note = _at(content, key), f"weights under {key!r}"
        for place in places if inner is None else ():
            inner = inner or _at(_at(content, place) or {}, key)
        if inner is None:
            keys = places or [str(name) for name in content]
            raise CheckpointError(f"{path}: has no key {key!r}; its keys are {_some(keys)}")
    else:
        known = sorted((p for p in places if _rank(p) is not None), key=lambda p: _rank(p) or ())
        if not known and _has_tensors(content):
            places = ["", *places]
        if not known and len(places) > 1 and places[0]:
            ways = " or ".join(f"--state-key {place}" for place in places[:SHOWN])
            raise CheckpointError(f"{path}: there are weights at several places in it; say which: {ways}")
        chosen = known[0] if known else places[0] if places else None
        inner = _at(content, chosen) if chosen else content
        note = f"weights under {chosen!r}" if chosen else "weights at its root"
        others = [place for place in places if place and place != chosen]
        note = note if chosen or others else ""
        if others:
            note += f" (also there: {', '.join(others)}; --state-key chooses, such as --state-key {others[0]})"
    state = {str(name): value for name, value in (inner or {}).items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path}: no tensors in it; its keys are {_some(map(str, inner or {})) or 'none'}")
    require_dense(state, str(path))
    return state, note


def _places(content: Mapping[Any, Any], path: str = "", depth: int = 0) -> Iterator[str]:
    """Keys, joined by dots, of the dictionaries in a file that hold tensors by name."""
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping):
            continue
        place = f"{path}.{key}" if path else key
        if _has_tensors(value):
            yield place
        elif depth + 1 < DEPTH:
            yield from _places(value, place, depth + 1)


def _rank(place: str) -> tuple[int, ...] | None:
    """Where a place comes in `WRAPPINGS`, `ema.module` before `model`; None where one of its keys is none of them."""
    keys = place.split(".")
    return tuple(map(WRAPPINGS.index, keys)) if set(keys) <= set(WRAPPINGS) else None


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(name, str) and isinstance(part, Tensor) for name, part in content.items())


def _at(content: Mapping[Any, Any], key: str) -> Mapping[Any, Any] | None:
    """What is under a key: of the dictionary, of one in it, or all whose names begin so."""
    if isinstance(content.get(key), Mapping):
        inner: Mapping[Any, Any] = content[key]
        return inner
    for end in (i for i, letter in enumerate(key) if letter == "."):
        part = content.get(key[:end])
        found = _at(part, key[end + 1 :]) if isinstance(part, Mapping) else None
        if found is not None:
            return found
    begins = f"{key}."
    return {name[len(begins) :]: v for name, v in content.items() if str(name).startswith(begins)} or None


@dataclass(frozen=True)
class Stripped:
    """A state without what wrappers put before its names; `left_out`: names without it; `note`: what was done."""

    state: dict[str, Tensor]
    left_out: dict[str, Tensor]
    note: str = ""


def strip_prefix(state: Mapping[str, Tensor], wanted: Sequence[str], where: str = "the file") -> Stripped:
    """`state` without what wrappers put before its names (`module.`, `_orig_mod.`, `model.`).

    The prefix is the one that makes most of `wanted` appear; names that lack it belong to the wrapper and are left out.

    Raises:
        CheckpointError: all of `wanted` are there several times, such as a student's and a teacher's.
    """
    unwrapped = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    prefixes = {""}
    for name in unwrapped:
        parts = name.split(".")
        prefixes.update(".".join(parts[:n]) + "." for n in range(1, min(4, len(parts))))
    known = set(wanted)
    sizes = {
        p: sum(n.startswith(p) and n[len(p) :] in known for n in unwrapped)
        for p in sorted(prefixes, key=lambda p: (len(p), p))
    }
    best = max(sizes, key=lambda p: sizes[p])
    if not best:
        return Stripped(unwrapped, {})
    whole = [p for p, count in sizes.items() if count == sizes[best] and count >= len(_without_counters(known))]
    if len(whole) > 1:
        ways = " or ".join(f"--state-key {prefix.removesuffix('.')}" for prefix in whole[:SHOWN])
        raise CheckpointError(f"{where}: these weights are in it {len(whole)} times; say which: {ways}")
    left_out = {name: t for name, t in unwrapped.items() if not name.startswith(best)}
    note = f"prefix {best!r} taken off" + (f", left out: {_some(left_out)}" if left_out else "")
    return Stripped({name[len(best) :]: t for name, t in unwrapped.items() if name.startswith(best)}, left_out, note)


def _without_counters(names: Iterable[str]) -> list[str]:
    """Counters that older files lack start at zero and play no part in evaluation."""
    return [name for name in names if not name.endswith("num_batches_tracked")]


def put_state(
    model: nn.Module, state: Mapping[str, Tensor], where: str, spare: Mapping[str, Tensor] | None = None
) -> None:
    """Make `state` the parameters and buffers of `model`, which may be on the meta device.

    Args:
        model: the network.
        state: by the network's names.
        where: for messages.
        spare: what else the file holds, for messages.

    Raises:
        CheckpointError: names are missing, unexpected or of another shape, or numbers cannot be weights: NaN, Inf, a
            negative running variance, another kind of tensor.
    """
    wanted = model.state_dict()
    numbers = {*_without_counters(wanted)}
    counters = {name: torch.zeros((), dtype=torch.long) for name in wanted if name not in numbers}
    state = {**counters, **state}
    complaint = misfit(wanted, state, spare or {})
    if complaint:
        raise CheckpointError(f"{where}: the weights do not fit the network: {complaint}")
    kinds = [
        f"{name} is {str(state[name].dtype).removeprefix('torch.')}"
        for name, tensor in wanted.items()
        if state[name].dtype not in _WEIGHTS and (tensor.is_floating_point() or state[name].is_complex())
    ]
    if kinds:
        said = ", ".join(str(t).removeprefix("torch.") for t in _WEIGHTS)
        raise CheckpointError(f"{where}: {_some(kinds)}, expected numbers of {said}; convert them where it is saved")
    check_numbers(state, where)
    # Assigning keeps the file's dtype and takes no second copy, but would untie tied weights of a built network.
    model.load_state_dict(dict(state), assign=any(p.is_meta for p in model.parameters()))


def require_dense(state: Mapping[str, Tensor], where: str) -> None:
    """Insist on tensors that are as many numbers as they are said to be, in memory.

    Raises:
        CheckpointError: one is sparse, nested, quantised, on the meta device, a conjugate or negated view, or repeats
            few numbers very often.
    """
    said = next((f"{name} is {kind}" for name, tensor in state.items() if (kind := _other_kind(tensor))), None)
    if said is not None:
        raise CheckpointError(
            f"{where}: {said}, expected dense numbers; make each tensor plain where the file is saved, such as "
            "tensor.to_dense(), .dequantize() or .clone()"
        )


def _other_kind(tensor: Tensor) -> str:
    """What a tensor is that is no plain block of numbers; "" for those."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_meta:
        return "a tensor without its numbers (on the meta device)"
    if tensor.is_quantized:
        return f"a quantised tensor ({str(tensor.dtype).removeprefix('torch.')})"
    if tensor.is_conj() or tensor.is_neg():
        return "a view that negates or conjugates another tensor"
    size = tensor.numel() * tensor.element_size()
    if size > max(_REPEATED, tensor.untyped_storage().nbytes()):
        return f"a view that repeats its numbers up to {size:,} bytes"
    return ""


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


def misfit(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], spare: Mapping[str, Tensor]) -> str:
    """How a file's names and shapes differ from a network's, what is missing beside what it may be called; "" if not.

    spare: what the file holds besides, whose absence from the network is no fault.
    """
    missing = [name for name in wanted if name not in state]
    left_over = [name for name in state if name not in wanted]
    kinds = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
    kinds += [*_unexpected(left_over, wanted), *_misshapen(wanted, state)]
    if not kinds:
        return ""
    others = {**{name: state[name] for name in left_over}, **spare}
    pairs = [(name, near) for name in missing for near in [_nearest(name, wanted[name], others)] if near is not None]
    lines = [f"  {name} {_sizes(wanted[name])}  <-  {near} {_sizes(others[near])}" for name, near in pairs[:PAIRED]]
    more = [f"  and {len(pairs) - PAIRED} more"] if len(pairs) > PAIRED else []
    head = ["missing in the network's names, and the nearest that the file has left over:"] if lines else []
    return "\n".join(["; ".join(kinds), *head, *lines, *more])


def _nearest(name: str, wanted: Tensor, others: Mapping[str, Tensor]) -> str | None:
    """The name among `others` most like `name`, one of the same shape if there is any."""
    same = [other for other, tensor in others.items() if tensor.shape == wanted.shape]
    last = name.rpartition(".")[2]
    alike = [other for other in same or others if other.rpartition(".")[2] == last]
    return next(iter(get_close_matches(name, alike, 1, 0.1)), None)


def _sizes(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _unexpected(names: Sequence[str], wanted: Mapping[str, Tensor]) -> list[str]:
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

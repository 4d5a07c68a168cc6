"""Self-describing checkpoints: weights, and all it takes to build the network they belong to.

A `.pt` file holds tensors and plain containers only and is read with `weights_only=True`; a `.safetensors` file holds
the same state, with the same description as JSON in its metadata (key `repconv`). See `docs/formats.md`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks.block import BranchSet, RepBlock
from ..blocks.fold import outermost_branches, with_single_convolutions
from ..errors import BackendError, CheckpointError, GeometryError, RepconvError
from ..expansion.placement import Placement, place, placement_of, replaced
from ..files.whole import whole_file
from ..models.libraries import is_own_code, parsed
from ..models.spec import ModelSpec
from ..models.zoo import create_plain
from .description import complaint, no_larger_than
from .state_dicts import put_state, read_content, require_dense

FORMAT = "repconv.checkpoint"
VERSION = 1
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""Of files that are written; all but the last are one format, by the names training scripts give it."""


@dataclass(frozen=True)
class Normalization:
    """What images in [0, 1] go through before the network: `(image - mean) / std`, one number a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network in evaluation mode and what its file says of it.

    input_shape: of what it was trained on without a batch, (c, h, w) of images; metrics: by name, as measured then.
    """

    model: nn.Module
    fused: bool
    class_names: tuple[str, ...] = ()
    normalization: Normalization | None = None
    input_shape: tuple[int, ...] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] = (),
    normalization: Normalization | None = None,
    input_shape: tuple[int, ...] | None = None,
    metrics: Mapping[str, float] | None = None,
    storage_dtype: torch.dtype | None = None,
) -> None:
    """Write `model`, made by `create_model` (and perhaps `fuse`), to a `.pt` or `.safetensors` file.

    Args:
        model: the network, multi-branch, plain or fused.
        path: the file; the suffix chooses the format.
        class_names: what the logits stand for.
        normalization: what images go through first.
        input_shape: of what it was trained on without a batch, (c, h, w) of images.
        metrics: anything measured, by name.
        storage_dtype: floating-point weights are stored in it and read back into the model's own dtype.

    Raises:
        CheckpointError: a model no file can describe, or another suffix.
        OutputError: the file cannot be written.
    """
    suffix = checked_suffix(path)
    structure = describe(model)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    dtype = next(t.dtype for t in state.values() if t.is_floating_point())
    if storage_dtype is not None:
        stored = {n: t.to(storage_dtype) if t.is_floating_point() else t for n, t in state.items()}
        lost = [n for n, t in stored.items() if not torch.equal(torch.isfinite(t), torch.isfinite(state[n]))]
        if lost:
            raise CheckpointError(f"{lost[0]} holds numbers too large to be stored as {storage_dtype}; use float32")
        state = stored
    description = {
        "format": FORMAT,
        "version": VERSION,
        **structure,
        "dtype": str(dtype).removeprefix("torch."),
        "class_names": list(class_names),
        "normalization": None
        if normalization is None
        else {"mean": list(normalization.mean), "std": list(normalization.std)},
        "input_shape": None if input_shape is None else list(input_shape),
        "metrics": {str(name): float(value) for name, value in (metrics or {}).items()},
    }
    description["digest"] = digest(description, state)
    if suffix != ".safetensors":
        # Into memory first: torch names entries of the archive after the file, and equal models give equal bytes.
        buffer = io.BytesIO()
        torch.save({**description, "state": state}, buffer)
        content = buffer.getvalue()
    else:
        from safetensors.torch import save as to_bytes

        content = to_bytes({n: t.clone() for n, t in state.items()}, {"repconv": json.dumps(description)})
    with whole_file(path) as stream:
        stream.write(content)


def checked_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of `path`, one of `SUFFIXES`.

    Raises:
        CheckpointError: it has another.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: a checkpoint ends in {' or '.join(SUFFIXES)}, got {suffix or 'no suffix'!r}")
    return suffix


def describe(model: nn.Module) -> dict[str, Any]:
    """The part of a description that rebuilds the modules of `model`: name, arguments, blocks, folded layers.

    Raises:
        CheckpointError: the model was made neither by `create_model` nor by name, or holds something else where it has
            convolutions.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise CheckpointError(
            f"{type(model).__name__} was made neither by repconv.create_model nor by name (timm:NAME, "
            "torchvision:NAME, package.module:factory), so no file of its weights could rebuild it; write an .onnx "
            "file instead"
        )
    plain = _plain(spec, own_code=spec.name)
    norms = replaced(model)
    blocks: dict[str, dict[str, Any]] = {}
    folded = []
    for name in dict.fromkeys([*(name for name, _ in outermost_branches(plain)), *norms]):
        try:
            module, before = model.get_submodule(name), plain.get_submodule(name)
        except AttributeError:
            raise CheckpointError(f"no checkpoint can describe this {spec.name}: it has no module {name}") from None
        if isinstance(module, RepBlock) and not isinstance(before, RepBlock):
            try:
                blocks[name] = _block_to_dict(placement_of(module, norms.get(name)))
            except GeometryError as error:
                raise CheckpointError(f"{name}: {error}, which no checkpoint can describe") from None
        elif isinstance(module, nn.Conv2d):
            folded.append(name)
        elif type(module) is not type(before):
            raise CheckpointError(f"{name} is a {type(module).__name__}, which no checkpoint can describe")
    absorbed = {name: norm for name, norm in norms.items() if name in folded and norm is not None}
    description = {
        "model": {"name": spec.name, "arguments": json.loads(json.dumps(dict(spec.arguments)))},
        "blocks": blocks,
        "folded": folded,
        **({"absorbed": absorbed} if absorbed else {}),
    }
    _check_described(model, description)
    return description


def _check_described(model: nn.Module, description: Mapping[str, Any]) -> None:
    """Raise unless `description` gives modules that hold what `model` holds."""
    again = rebuild(description, own_code=description["model"]["name"])
    shapes, wanted = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (again, model))
    if shapes != wanted:
        odd = sorted(n for n in {**shapes, **wanted} if shapes.get(n) != wanted.get(n))
        raise CheckpointError(
            f"no checkpoint can describe this {description['model']['name']}: {odd[0]} is "
            f"{wanted.get(odd[0], 'missing')}, expected {shapes.get(odd[0], 'nothing of that name')}"
        )
    norms = {n: m.eps for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, module in again.named_modules():
        if isinstance(module, nn.BatchNorm2d) and norms.get(name) != module.eps:
            raise CheckpointError(
                f"no checkpoint can describe {name}: its eps is {norms.get(name)}, that of a "
                f"{description['model']['name']} {module.eps}"
            )


def _block_to_dict(placement: Placement) -> dict[str, Any]:
    """A block's placement as plain values; what is as usual is left out."""
    usual = {field.name: field.default for field in fields(Placement)}
    known = {key: value for key, value in vars(placement).items() if key != "branches" and value != usual[key]}
    return {"fixed": list(placement.branches.fixed), "branches": list(placement.branches.searchable), **known}


def _block_from_dict(block: Mapping[str, Any]) -> Placement:
    rest = {key: value for key, value in block.items() if key not in ("fixed", "branches")}
    numbers = [rest.get("eps", 1e-5), rest.get("momentum", 0.1)]
    if not all(isinstance(n, float) and 0 < n < 1 for n in numbers if n is not None) or numbers[0] is None:
        raise TypeError(f"eps and momentum of a batch normalisation are {numbers}")
    return Placement(branches=BranchSet(tuple(block["fixed"]), tuple(block["branches"])), **rest)


def rebuild(description: Mapping[str, Any], *, own_code: str | None = None) -> nn.Module:
    """The modules a description stands for. Those of this package's networks are on the meta device, without numbers.

    Args:
        description: of `describe`.
        own_code: the `package.module:factory` that may be run to make the network.

    Raises:
        CheckpointError: the description is not one, or needs code that `own_code` does not name.
        BackendError: the network's library is not installed.
    """
    try:
        arguments = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in description["model"]["arguments"].items()
        }
        spec = ModelSpec(description["model"]["name"], arguments)
        plain = _plain(spec, own_code=own_code)
        folded, absorbed = list(description["folded"]), dict(description.get("absorbed", {}))
        placements = {name: _block_from_dict(block) for name, block in description["blocks"].items()}
        # A folded convolution of another package stands where a block stood.
        foreign = [name for name in folded if isinstance(plain.get_submodule(name), nn.Conv2d)]
        placements |= {name: Placement(branches=BranchSet(("3x3",)), norm=absorbed.get(name)) for name in foreign}
        with torch.device("cpu" if ":" in spec.name else "meta"):
            return with_single_convolutions(place(plain, placements), folded)
    except BackendError:
        raise
    except (KeyError, TypeError, AttributeError, RepconvError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the description of the model makes no sense: {error}") from error


def _plain(spec: ModelSpec, *, own_code: str | None) -> nn.Module:
    """The network before it was expanded: of this package on the meta device, of others as they make it.

    Raises:
        CheckpointError: it takes the user's own code, and `own_code` does not name that.
    """
    if is_own_code(spec.name) and (own_code is None or parsed(own_code)[0] != spec.name):
        raise CheckpointError(
            f"the network is made by {spec.name}, which is no code of this package and is not run unasked; if you "
            f"trust it, say so: --model {spec.name}, or repconv.load(path, own_code={spec.name!r})"
        )
    with torch.device("cpu" if ":" in spec.name else "meta"):
        return create_plain(spec)


def own_code_of(content: Any, metadata: Mapping[str, str], path: str | os.PathLike[str]) -> str | None:  # noqa: ANN401
    """The `package.module:factory` a checkpoint's network is made by, None if it needs no code of the user's.

    Raises:
        CheckpointError: as `load`.
    """
    description, _ = _split(content, metadata, path)
    try:
        name = str(description["model"]["name"])
    except (KeyError, TypeError):
        return None
    return name if is_own_code(name) else None


def load(path: str | os.PathLike[str], *, own_code: str | None = None) -> Checkpoint:
    """Read a file written by `save`; the model is on the CPU, in evaluation mode.

    Args:
        path: the file.
        own_code: for a network made by `package.module:factory`, that name again: nothing but this package and the
            libraries timm and torchvision is run without being asked for.

    Raises:
        CheckpointError: not a readable checkpoint of this format, a newer version, damaged, or a state that does not
            fit or cannot be weights.
    """
    content, metadata = read_content(path)
    if not is_checkpoint(content, metadata):
        raise CheckpointError(
            f"{path}: not a repconv checkpoint: its format is not {FORMAT!r}. Weights of a network go into it with "
            "network.load_state_dict(torch.load(path, weights_only=True)); repconv.save writes checkpoints"
        )
    return from_content(content, metadata, path, own_code=own_code)


def is_checkpoint(content: object, metadata: Mapping[str, str]) -> bool:
    """Whether what `read_content` returned is of this format, of any version."""
    return "repconv" in metadata or (isinstance(content, Mapping) and content.get("format") == FORMAT)


def from_content(
    content: Any,  # noqa: ANN401  # whatever the file held
    metadata: Mapping[str, str],
    path: str | os.PathLike[str],
    *,
    own_code: str | None = None,
) -> Checkpoint:
    """The checkpoint in what `read_content` returned.

    Raises:
        CheckpointError: as `load`.
    """
    description, state = _split(content, metadata, path)
    version = description.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path}: the format version is {version!r}, expected a whole number from 1 on")
    if version > VERSION:
        raise CheckpointError(f"{path}: format version {version}, this repconv reads up to {VERSION}; upgrade repconv")
    if description.get("digest") != digest(description, state):
        raise CheckpointError(
            f"{path}: the file is damaged: its contents do not match their digest; fetch or save it again"
        )
    said = complaint(description, sum(t.numel() for t in state.values()))
    if said:
        raise CheckpointError(f"{path}: the description of the model makes no sense: {said}")
    dtype = getattr(torch, description["dtype"])
    try:
        with no_larger_than(state):
            model = rebuild(description, own_code=own_code)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    if ":" in description["model"]["name"]:
        model.to(dtype)
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    normalization, shape = description["normalization"], description["input_shape"]
    checkpoint = Checkpoint(
        model=model,
        fused=bool(description["folded"]) and not description["blocks"],
        class_names=tuple(description["class_names"]),
        normalization=None
        if normalization is None
        else Normalization(tuple(normalization["mean"]), tuple(normalization["std"])),
        input_shape=None if shape is None else tuple(shape),
        metrics=dict(description["metrics"]),
    )
    put_state(model, state, str(path))
    model.eval()
    return checkpoint


def _split(
    content: Any,  # noqa: ANN401  # whatever the file held
    metadata: Mapping[str, str],
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and state, from where either format keeps them."""
    try:
        description = json.loads(metadata["repconv"]) if "repconv" in metadata else dict(content)
        state = content if "repconv" in metadata else description.pop("state")
        tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
        if not isinstance(description, dict) or len(tensors) < len(state):
            raise TypeError("expected a description and a state dict of tensors")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the checkpoint has no readable description and state ({error})") from error
    require_dense(tensors, str(path))
    return description, tensors


def digest(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the description (without its `digest`) and every tensor's name, dtype, shape and bytes."""
    sha = hashlib.sha256()
    plain = {key: value for key, value in description.items() if key != "digest"}
    sha.update(json.dumps(plain, sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()

"""A source opened once, and the forms of it that are compared: unfused, fused, and the plain network of its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repconv.blocks.block import RepBlock
from repconv.blocks.fold import fuse_blocks
from repconv.errors import SourceError
from repconv.expansion.placement import replaced
from repconv.export.artefacts.artefact import onnx_artefact, program_artefact
from repconv.export.settings import BuildSettings, Span
from repconv.export.subject import Reference, Shape, Subject, in_float64, known_size, open_subject
from repconv.files.programs import read_program
from repconv.files.whole import sha256
from repconv.fusing import exported_program, fuse_network
from repconv.models.libraries import create_named, is_own_code
from repconv.models.spec import ModelSpec, is_foreign
from repconv.models.zoo import create_plain, resolve
from repconv.sources.checkpoint import Normalization, save
from repconv.sources.source import open_source

from .settings import FUSED, PLAIN, UNFUSED


@dataclass(frozen=True)
class Given:
    """A source as it was opened.

    label: short, for tables. network: unfused, float32, in evaluation mode; None for an ONNX file.
    program: whether it is a program of torch.export. fused: whether it was fused before it was saved.
    reference: from a float32 batch to outputs, in float64 where the source is a PyTorch network.
    size: (c, h, w) it is measured with. path, sha256: of its file, None without one.
    """

    label: str
    network: nn.Module | None
    size: Shape
    reference: Reference
    path: Path | None = None
    sha256: str | None = None
    program: bool = False
    fused: bool = False
    normalization: Normalization | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def foreign(self) -> bool:
        """Whether there may be more to fold than this package's blocks."""
        return self.network is None or self.program or is_foreign(self.network)


def open_given(
    text: str, image: tuple[int, int] | None, *, model: str | None = None, state_key: str | None = None, seed: int = 0
) -> Given:
    """Open what `text` names.

    Args:
        text: a source as every command takes it, an .onnx file or a .pt2 program.
        image: height and width; None: what the source records.
        model: for a state dict, its network's name.
        state_key: the key in the file under which the weights are.
        seed: of weights where the source has none.

    Raises:
        SourceError: it names nothing that can be measured, or records no image size.
        CheckpointError: the file cannot be read, or does not fit the network.
        BackendError: it needs a package that is not installed.
    """
    if not text.strip():
        raise SourceError("an empty SOURCE; name a file, or a network such as timm:resnet18")
    path = Path(text)
    if path.suffix in (".onnx", ".pt2"):
        if not path.is_file():
            raise SourceError(f"{text} {'is a directory; name a file' if path.is_dir() else 'is no file'}")
        if model is not None or state_key is not None:
            raise SourceError(f"--model and --state-key are for weights without their network; {text} holds its own")
        return _onnx(path, image) if path.suffix == ".onnx" else _program(path, image)
    torch.manual_seed(seed)
    opened = open_source(text, model=model, state_key=state_key)
    known = opened.checkpoint
    network = known.model.float()
    size = _sized(text, known.input_shape, image)
    label = path.name if opened.path is not None and ":" not in text else text
    return Given(
        label,
        network,
        size,
        remembered(in_float64(network)),
        opened.path,
        opened.sha256,
        fused=known.fused,
        normalization=known.normalization,
        notes=opened.notes,
    )


def remembered(reference: Reference) -> Reference:
    """A reference that keeps what it gave for its last input: every backend is compared with the same."""
    last: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def run(x: Tensor) -> tuple[Tensor, ...]:
        if not last or last[0][0] is not x:
            last[:] = [(x, reference(x))]
        return last[0][1]

    return run


def _onnx(path: Path, image: tuple[int, int] | None) -> Given:
    artefact = onnx_artefact(str(path), path)
    declared = artefact.inputs[0].shape if len(artefact.inputs) == 1 else None
    if declared is None or len(declared) != 4 or artefact.inputs[0].dtype != torch.float32:
        said = ", ".join(f"{i.name}: {str(i.dtype).removeprefix('torch.')} {i.shape}" for i in artefact.inputs)
        raise SourceError(f"{path} takes {said}; only float32 models of one image [n, c, h, w] are measured")
    size = _sized(str(path), known_size(declared), image, channels=declared[1])
    return Given(path.name, None, size, remembered(lambda x: artefact.run((x,))), path, artefact.sha256)


def _program(path: Path, image: tuple[int, int] | None) -> Given:
    artefact = program_artefact(str(path), path)
    if len(artefact.inputs) != 1:
        raise SourceError(f"{path} takes {len(artefact.inputs)} inputs; only programs of one image are measured")
    declared = artefact.inputs[0].shape
    size = _sized(str(path), known_size(declared), image, channels=declared[1] if declared else None)
    module = read_program(path).module()
    return Given(path.name, module, size, remembered(in_float64(module)), path, sha256(path), program=True)


def _sized(name: str, known: Shape | None, image: tuple[int, int] | None, channels: int | None = None) -> Shape:
    if image is not None:
        return (known[0] if known else channels or 3, *image)
    if known is None:
        raise SourceError(f"{name} records no image size; give one: --image 224,224")
    return known


@dataclass(frozen=True)
class Form:
    """One form of a source.

    source: label of the source it is measured beside.
    name: `unfused`, `fused`, `plain`, or of the file it is compared with.
    same: whether it has to give what the source gives.
    given: what it was made of. fuse: whether it is fused where it is built.
    network: as a module, unfused if `fuse`; None for ONNX files.
    """

    source: str
    name: str
    same: bool
    given: Given
    fuse: bool
    network: nn.Module | None

    @property
    def own_code(self) -> str | None:
        """The user's own function that a file of its weights needs to be named again; None for others."""
        spec = getattr(self.network, "spec", None)
        return spec.name if isinstance(spec, ModelSpec) and is_own_code(spec.name) else None

    def onnx(self, batch: int) -> Subject:
        """The form in ONNX, float32, of one size; its `report` tells what fusing did."""
        _, height, width = self.given.size
        settings = BuildSettings(batch=Span.of(batch), image=(Span.of(height), Span.of(width)), fuse=self.fuse)
        if self.network is None and self.given.path is not None:
            return open_subject(self.given.path, settings)
        if self.network is None:
            raise SourceError(f"{self.given.label} is no network PyTorch or ONNX could run")
        return open_subject(self.network, settings, channels=self.given.size[0])

    def save_for_torch(self, folder: Path, stem: str, x: Tensor) -> tuple[Path, int]:
        """Write it as PyTorch runs it: a checkpoint, or a program where it is no network with a name.

        Returns the file, and how many numbers its weights and buffers are.

        Raises:
            SourceError: PyTorch cannot run it.
        """
        if self.network is None:
            raise SourceError(
                f"{self.given.label} is an ONNX file, which PyTorch does not run; measure it with --backend "
                "onnxruntime or openvino"
            )
        in_graph = self.given.program or (self.fuse and is_foreign(self.network))
        if not in_graph:
            network = fuse_blocks(self.network)[0] if self.fuse else self.network
            save(network, folder / f"{stem}.pt")
            return folder / f"{stem}.pt", _count(network.state_dict())
        # What runs is compared with its source by the benchmark itself.
        program = fuse_network(self.network, [x], prove=False)[0] if self.fuse else exported_program(self.network, x)
        torch.export.save(program, folder / f"{stem}.pt2")
        return folder / f"{stem}.pt2", _count(program.state_dict)


def _count(state: Mapping[str, Any]) -> int:
    return sum(t.numel() for t in state.values() if isinstance(t, Tensor))


def forms_of(given: Given, against: str | None, other: Callable[[str], Given]) -> tuple[list[Form], list[str]]:
    """The forms that are compared, and notes in words on those that are not.

    Args:
        given: the source.
        against: as in `BenchSettings`.
        other: opens a file that is named there.

    Raises:
        SourceError: `against` asks for what is not known.
    """
    unfused = Form(given.label, UNFUSED, True, given, fuse=False, network=given.network)
    fused = Form(given.label, FUSED, True, given, fuse=True, network=given.network)
    notes: list[str] = []
    forms = [unfused, fused]
    if given.fused:
        forms = [fused]
        notes.append(f"{given.label} was fused before it was saved; its unfused form is not in it")
        if against == UNFUSED:
            raise SourceError(f"{notes[0]}; name the unfused file: --against FILE")
    if against not in (None, PLAIN, UNFUSED):
        compared = other(str(against))
        forms.append(Form(given.label, compared.label, False, compared, fuse=False, network=compared.network))
    elif against != UNFUSED:
        plain = plain_of(given)
        if plain is not None:
            forms.append(Form(given.label, PLAIN, False, given, fuse=True, network=plain))
        else:
            said = f"no plain form of {given.label} is known; name one: --against FILE"
            if against == PLAIN:
                raise SourceError(said)
            notes.append(said)
    return forms, notes


def plain_of(given: Given) -> nn.Module | None:
    """The network of the same shape without branches, of random weights; None where none is known.

    Of this package's networks `create_model` knows it; of networks whose convolutions were expanded it is the network
    itself before that.
    """
    network = given.network
    spec = getattr(network, "spec", None)
    if network is None or not isinstance(spec, ModelSpec):
        return None
    expanded = any(isinstance(module, RepBlock) for module in network.modules()) or bool(replaced(network))
    if ":" in spec.name:
        return create_named(spec.name).eval() if expanded else None
    return create_plain(spec).eval() if expanded or resolve(spec.name)[1] is not None else None

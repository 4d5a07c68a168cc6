"""A source opened once, and the forms of it that are compared: unfused, fused, and the plain network of its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from repconv.blocks.block import RepBlock
from repconv.blocks.fold import fuse_blocks
from repconv.blocks.probing import example_shape, pixel_axes
from repconv.errors import SourceError
from repconv.expansion.placement import replaced
from repconv.export.artefacts.artefact import artefact_of
from repconv.export.settings import BuildSettings, Span
from repconv.export.subject import Reference, Shape, Subject, exact_outputs, open_subject, require_fit, require_input
from repconv.export.targets import TARGETS
from repconv.fusing import fuse_network
from repconv.graph import fuse_program
from repconv.models.libraries import is_own_code
from repconv.models.spec import ModelSpec, is_foreign
from repconv.models.zoo import create_plain, resolve
from repconv.proof.leaves import of_tensors
from repconv.sources.checkpoint import Checkpoint, save
from repconv.sources.source import Source, open_source

from .settings import FUSED, PLAIN, UNFUSED


@dataclass(frozen=True, kw_only=True)
class Given:
    """A source as it was opened.

    label: short, for tables. network: unfused, float32, in evaluation mode; None for an ONNX file.
    size: (c, h, w) it is measured with.
    reference: from a float32 batch to outputs, in float64 where the source is a PyTorch network.
    """

    source: Source
    label: str
    network: nn.Module | None
    size: Shape
    reference: Reference

    @property
    def path(self) -> Path | None:
        """Of its file, None without one."""
        return self.source.path

    @property
    def program(self) -> bool:
        """Whether it is a program of torch.export."""
        return self.source.is_graph and self.network is not None

    @property
    def fused(self) -> bool:
        """Whether it was fused before it was saved."""
        return not self.source.is_graph and self.source.checkpoint.fused

    @property
    def foreign(self) -> bool:
        """Whether there may be more to fold than this package's blocks."""
        return self.network is None or self.program or is_foreign(self.network)


def open_given(
    text: str, image: tuple[int, ...] | None, *, model: str | None = None, state_key: str | None = None, seed: int = 0
) -> Given:
    """Open what `text` names.

    Args:
        text: a source as every command takes it.
        image: height and width, or all sizes of another input, with channels or not; None: what the source records.
        model: for a state dict, its network's name.
        state_key: the key in the file under which the weights are.
        seed: of weights where the source has none.

    Raises:
        SourceError: it names nothing that can be measured, or records no image size.
        CheckpointError: the file cannot be read, or does not fit the network.
        BackendError: it needs a package that is not installed.
    """
    torch.manual_seed(seed)
    source = open_source(text, model=model, state_key=state_key)
    held = source.held
    label = text if source.path is None or ":" in text else source.path.name
    if isinstance(held, Checkpoint):
        network = held.model.float()
        return Given(
            source=source,
            label=label,
            network=network,
            size=_sized(source, image),
            reference=remembered(exact_outputs(network)),
        )
    require_input(source, "measured")
    size = _sized(source, image)
    if isinstance(held, ExportedProgram):
        module = of_tensors(held)
        return Given(source=source, label=label, network=module, size=size, reference=remembered(exact_outputs(module)))
    artefact = artefact_of(source)
    return Given(
        source=source, label=label, network=None, size=size, reference=remembered(lambda x: artefact.run((x,)))
    )


def remembered(reference: Reference) -> Reference:
    """A reference that keeps what it gave for its last input: every backend is compared with the same."""
    last: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def run(x: Tensor) -> tuple[Tensor, ...]:
        if not last or last[0][0] is not x:
            last[:] = [(x, reference(x))]
        return last[0][1]

    return run


def _sized(source: Source, image: tuple[int, ...] | None) -> Shape:
    if image is not None:
        taken, has = source.inputs[0].shape, source.channels
        axes = pixel_axes(source.checkpoint.model) if taken is None else len(taken) - 2
        shape = (has or 3, *image) if len(image) == axes else example_shape(image, axes, source.name)
        if has not in (None, shape[0]):
            given = ",".join(map(str, image))
            raise SourceError(f"{source.name} takes {has} channels; --input-shape {given} has {shape[0]}")
        return shape
    if source.size is None:
        raise SourceError(f"{source.name} records no size of its input; give it: --input-shape 3,224,224")
    return source.size


@dataclass(frozen=True, kw_only=True)
class BenchForm:
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

    def subject(self, batch: int, reads: str) -> Subject:
        """The form as a target reads it, float32, of one size; its `report` tells what fusing did."""
        spans = tuple(map(Span.of, self.given.size[1:]))
        settings = BuildSettings(batch=Span.of(batch), image=spans, fuse=self.fuse)
        if self.network is None or (self.network is self.given.network and self.given.program):
            return open_subject(self.given.source, settings, reads=reads)
        return open_subject(self.network, settings, channels=self.given.size[0], reads=reads)

    def save_for_torch(self, folder: Path, stem: str, x: Tensor) -> tuple[Path, int]:
        """Write it as PyTorch runs it: a checkpoint, or a program where it is no network with a name.

        Returns the file, and how many numbers its weights and buffers are.

        Raises:
            SourceError: PyTorch cannot run it.
        """
        if self.network is None:
            raise SourceError(
                f"{self.given.label} is an ONNX file, which PyTorch does not run; measure it with --backend "
                + " or ".join(way.name for target in TARGETS.values() for way in target.timed if way.usual)
            )
        held = self.given.source.held
        if not isinstance(held, ExportedProgram) and not (self.fuse and is_foreign(self.network)):
            network = fuse_blocks(self.network)[0] if self.fuse else self.network
            save(network, folder / f"{stem}.pt")
            return folder / f"{stem}.pt", _count(network.state_dict())
        # What runs is compared with its source by the benchmark itself.
        if isinstance(held, ExportedProgram):
            (taken,) = self.given.source.inputs
            require_fit(self.given.label, taken.shape or (), [Span.of(len(x)), *(None,) * (x.dim() - 1)])
            program = fuse_program(held, prove=False)[0] if self.fuse else held
        else:
            program = fuse_network(self.network, [x], prove=False)[0]
        torch.export.save(program, folder / f"{stem}.pt2")
        return folder / f"{stem}.pt2", _count(program.state_dict)


def _count(state: Mapping[str, Any]) -> int:
    return sum(t.numel() for t in state.values() if isinstance(t, Tensor))


def forms_of(given: Given, against: str | None, other: Callable[[str], Given]) -> tuple[list[BenchForm], list[str]]:
    """The forms that are compared, and notes in words on those that are not.

    Args:
        given: the source.
        against: as in `BenchSettings`.
        other: opens a file that is named there.

    Raises:
        SourceError: `against` asks for what is not known.
    """
    unfused = BenchForm(source=given.label, name=UNFUSED, same=True, given=given, fuse=False, network=given.network)
    fused = BenchForm(source=given.label, name=FUSED, same=True, given=given, fuse=True, network=given.network)
    notes: list[str] = []
    forms = [unfused, fused]
    if given.fused:
        forms = [fused]
        notes.append(f"{given.label} was fused before it was saved; its unfused form is not in it")
        if against == UNFUSED:
            raise SourceError(f"{notes[0]}; name the unfused file: --against FILE")
    if against not in (None, PLAIN, UNFUSED):
        compared = other(str(against))
        forms.append(
            BenchForm(
                source=given.label,
                name=compared.label,
                same=False,
                given=compared,
                fuse=False,
                network=compared.network,
            )
        )
    elif against != UNFUSED:
        plain = plain_of(given)
        if plain is not None:
            forms.append(BenchForm(source=given.label, name=PLAIN, same=False, given=given, fuse=True, network=plain))
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
    of_blocks = ":" not in spec.name and resolve(spec.name)[1] is not None
    return create_plain(spec).eval() if expanded or of_blocks else None

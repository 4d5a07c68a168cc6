"""In-place operations and views of programs: written by themselves or by torch's long way, and right either way."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as torch's documentation has it
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from repconv.graph import fuse_program
from repconv.graph.dialects.functional import functional, may_share

_aten = torch.ops.aten


class Written(nn.Module):
    """A function as a module, with a buffer."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("held", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(x, self.held)


def exported(function: Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]], x: Tensor) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(Written(function), (x.clone(),))


def kinds(module: fx.GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in module.graph.nodes if node.op == "call_function")


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    """The programs that torch was asked to decompose."""
    asked: list[ExportedProgram] = []
    theirs = ExportedProgram.run_decompositions

    def noted(self: ExportedProgram, *args: object, **options: object) -> ExportedProgram:
        asked.append(self)
        return theirs(self, *args, **options)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", noted)
    return asked


def _read_again(x: Tensor, _: Tensor) -> Tensor:
    y = x * 2
    y.relu_()
    return y + 1


def _chain(x: Tensor, _: Tensor) -> Tensor:
    y = x * 2
    y += x
    z = y.flatten(1)
    return F.hardswish(F.relu_(z), inplace=True).unflatten(1, (4, -1)).chunk(2, 1)[1]


def _dropped(x: Tensor, _: Tensor) -> Tensor:
    return F.dropout(x.transpose(1, 2).reshape(2, -1), 0.5, training=False).contiguous().expand_as(x.flatten(1))


def _into_part_unread(x: Tensor, __: Tensor) -> Tensor:
    _, second = (x * 2).chunk(2, 1)
    return second.relu_()


@pytest.mark.parametrize("function", [_read_again, _chain, _dropped, _into_part_unread])
def test_plain_programs_are_written_without_decomposing(
    function: Callable[[Tensor, Tensor], Tensor], decomposed: list[ExportedProgram]
) -> None:
    x = torch.randn(2, 4, 6)
    program = exported(function, x)
    ours = functional(program)
    assert not decomposed
    assert not any(
        isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable for n in ours.graph.nodes
    )
    theirs = program.run_decompositions({}).module(check_guards=False)
    ours.graph.eliminate_dead_code()
    assert set(kinds(ours)) <= set(kinds(theirs))  # which makes every view of what was written into again
    assert torch.equal(ours(x.clone()), function(x.clone(), torch.ones(4)))


def _into_part(x: Tensor, _: Tensor) -> Tensor:
    y = x * 2
    y.chunk(2, 1)[0].relu_()
    return y


def _behind_a_view(x: Tensor, _: Tensor) -> Tensor:
    y = x * 2
    view = y.flatten(1)
    y.relu_()
    return view + 1


def _behind_einsum(x: Tensor, _: Tensor) -> Tensor:
    y = x * 2
    view = torch.einsum("nij->nji", y)  # its schema does not say that this is a view
    y.relu_()
    return view + 1


def _slice_assigned(x: Tensor, _: Tensor) -> Tensor:
    y = torch.zeros(2, 4, 8)
    y[:, :, 1:7] = x
    return y * 2


def _input_written(x: Tensor, _: Tensor) -> Tensor:
    x.relu_()
    return x + 1


def _buffer_written(x: Tensor, held: Tensor) -> Tensor:
    held.add_(1)
    return x * held[0]


def _other_type(x: Tensor, _: Tensor) -> Tensor:
    y = (x * 2).half()
    y += x
    return y.float()


def _by_statistics(x: Tensor, held: Tensor) -> Tensor:
    return F.batch_norm(x, held, held.clone(), training=True)


@pytest.mark.parametrize(
    "function",
    [
        _into_part, _behind_a_view, _behind_einsum, _slice_assigned, _input_written, _buffer_written, _other_type,
        _by_statistics,
    ],
)  # fmt: skip
def test_what_is_written_into_under_other_names_goes_the_long_way(
    function: Callable[[Tensor, Tensor], Tensor], decomposed: list[ExportedProgram]
) -> None:
    x = torch.randn(2, 4, 6)
    made = functional(exported(function, x))
    assert decomposed
    assert torch.equal(made(x.clone()), function(x.clone(), torch.ones(4)))


def test_a_view_of_open_size_stays_and_everything_else_is_written() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).relu_().flatten(2).chunk(2, 1)[0]

    auto = torch.export.Dim.AUTO
    model, x = Net().eval(), torch.randn(2, 3, 9, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    made = kinds(functional(program))
    assert made["aten.flatten.using_ints"] == made["aten.relu.default"] == made["aten.split.Tensor"] == 1
    fused, report = fuse_program(program)
    assert report.after.batch_norms == 0
    other = torch.randn(3, 3, 7, 12)
    with torch.no_grad():
        assert torch.allclose(fused.module()(other), model(other), atol=1e-5)


def test_the_given_program_is_not_changed() -> None:
    program = exported(_chain, torch.randn(2, 4, 6))
    before = str(program)
    made = functional(program)
    assert str(program) == before
    assert dict(made.named_buffers())["held"] is program.constants.get("held", program.state_dict.get("held"))


def test_schemas_and_compositions_tell_what_may_share_memory() -> None:
    assert may_share(_aten.view.default)
    assert may_share(_aten.einsum.default)
    assert may_share(_aten.dropout.default)
    assert may_share(_aten.relu_.default)
    assert not may_share(_aten.relu.default)
    assert not may_share(_aten.conv2d.default)
    assert not may_share(_aten.add.Tensor)


def _other(draw: random.Random, held: list[Tensor], like: Tensor) -> Tensor:
    """One of the same size; a new one where there is no other."""
    same = [each for each in held if each.shape == like.shape and each is not like]
    return draw.choice(same) if same else like * 0.5


def _moves() -> dict[str, Callable[[random.Random, list[Tensor], Tensor], Tensor]]:
    return {
        "relu_": lambda _, __, t: t.relu_(),
        "scaled_": lambda _, __, t: t.mul_(0.75),
        "added_": lambda draw, held, t: t.add_(_other(draw, held, t).clone()),
        "summed_": lambda draw, held, t: t.add_(_other(draw, held, t)),
        "transposed": lambda _, __, t: t.transpose(-1, -2),
        "flattened": lambda _, __, t: t.reshape(-1).unflatten(0, t.shape),
        "einsum": lambda _, __, t: torch.einsum("ij->ji", t),
        "half": lambda _, __, t: t.chunk(2, 0)[0] if t.shape[0] > 1 else t.clone(),
        "row": lambda _, __, t: t[:1],
        "contiguous": lambda _, __, t: t.contiguous(),
        "dropout": lambda _, __, t: F.dropout(t, 0.5, training=False),
        "copy": lambda _, __, t: t.clone(),
        "twice": lambda _, __, t: t * 2,
        "detached": lambda _, __, t: t.detach(),
    }


@pytest.mark.parametrize("seed", range(24))
def test_random_programs_compute_the_same(seed: int) -> None:
    def function(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        draw, moves = random.Random(seed), _moves()
        held = [x * 1.5, x - 1]
        for _step in range(12):
            # The newest mostly, so that not every program writes under an old name.
            source = held[-1] if draw.random() < 0.6 else draw.choice(held)
            held.append(moves[draw.choice(sorted(moves))](draw, held, source))
        return tuple(each.clone() for each in held[-draw.randint(1, 3) :])

    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
    try:
        wanted = function(x.clone(), x)
    except RuntimeError:  # memory written and read in one operation
        pytest.skip("torch refuses it")
    made = functional(exported(function, x))(x.clone())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(made, wanted, strict=True))

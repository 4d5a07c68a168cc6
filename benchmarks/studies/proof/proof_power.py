"""How often the proof refuses what is right, and what it finds of what is wrong.

    python benchmarks/studies/proof/proof_power.py [--minutes 10] [--only SUBSTRING] [--table]

A piece is one network, type and form of the result: folded `SEEDS` times with fresh random statistics and proven whole,
region by region and end to end, as `repconv fuse` does it; then one number after another of a right result is made
wrong, and the regions alone are proven again. Pieces that the result file already has are not measured again, so the
script may be stopped at any time; `--table` only writes docs/proof.md's table anew.

A weight tensor is scaled by 1 + d or 1 - d; its leftmost column of taps by 1 + d; one bias is shifted by d times what
its channel varies for inputs of unit variance, the Euclidean norm of its weights; the weights of two output channels
change places. What rounds to the same stored numbers is no mistake and is counted by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import ExportedProgram

from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import RESULTS, ROOT, asking, positive, read_result, write_result
from repconv.benchmarks.studies.graph.networks import randomise
from repconv.benchmarks.studies.graph.networks import to_onnx as exported_by_tracing
from repconv.benchmarks.studies.proof.proof_networks import NETWORKS, is_own, network
from repconv.benchmarks.studies.proof.proof_table import between, power_table
from repconv.blocks.fold import fuse_blocks, outermost_branches
from repconv.blocks.proof import block_by_block, prove_blocks
from repconv.export.onnx.exporter import exported
from repconv.files.whole import write_whole
from repconv.fusing import exported_program
from repconv.graph import fuse_onnx
from repconv.graph.onnx.fuse import proof_of
from repconv.graph.onnx.proof.prove import region_comparisons
from repconv.graph.program.fuse import export_again, rewrite
from repconv.graph.program.proof.prove import program_regions, prove_program
from repconv.proof.report import Proof

SCHEMA = "repconv.proof_power/1"
RESULT = RESULTS / "proof_power.json"
PAGE = ROOT / "docs" / "proof.md"
SEEDS = 10
DELTAS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
OPSETS = (9, 13, 18, 21, 23)
FORMS = ("checkpoint", "program", *(f"onnx {opset}" for opset in OPSETS))
_FIRST_OF_OURS = 13
"""The lowest opset that `repconv export` writes; below, torch's older exporter is called here."""


@dataclass
class Stored:
    """One convolution of a result: its numbers, and how to put others in their place."""

    weight: Tensor
    bias: Tensor | None
    put: Callable[[Tensor, Tensor | None], None]


@dataclass
class Case:
    """A network in one form.

    fold: fold it as it now is, and prove that whole. stored: the convolutions of what was folded last. failed: whether
        the proof of its regions refuses it as it now is.
    """

    fold: Callable[[], Proof]
    stored: Callable[[], list[Stored]]
    failed: Callable[[], bool]


def of_checkpoint(model: nn.Module, x: Tensor) -> Case:
    """Blocks of this package, folded as modules."""
    last: list[nn.Module] = []

    def fold() -> Proof:
        last[:] = [fuse_blocks(model)[0]]
        return prove_blocks(model, last[0], [x])

    def stored() -> list[Stored]:
        convs = [last[0].get_submodule(name) for name, _ in outermost_branches(model)]
        return [_of_tensors(conv.weight, conv.bias) for conv in convs if isinstance(conv, nn.Conv2d)]

    return Case(fold, stored, lambda: any(not c.passed for c in block_by_block(model, last[0])))


def _of_tensors(weight: Tensor, bias: Tensor | None) -> Stored:
    def put(new: Tensor, shift: Tensor | None) -> None:
        with torch.no_grad():
            weight.copy_(new)
            if bias is not None and shift is not None:
                bias.copy_(shift)

    return Stored(weight.detach().clone(), None if bias is None else bias.detach().clone(), put)


def of_program(model: nn.Module, x: Tensor) -> Case:
    """The network as a program of torch.export, whose tensors are the network's own."""
    program: ExportedProgram = exported_program(model, x)
    last = [rewrite(program)]

    def fold() -> Proof:
        last[:] = [rewrite(program)]
        return prove_program(last[0], export_again(program, last[0]), model, [(x,)])

    def stored() -> list[Stored]:
        held = dict(last[0].after.named_parameters())
        names = [
            name.removesuffix("_weight") for name in held if name.startswith("fused_") and name.endswith("_weight")
        ]
        return [_of_tensors(held[f"{name}_weight"], held.get(f"{name}_bias")) for name in names]

    return Case(fold, stored, lambda: any(not c.passed for c in program_regions(last[0], [x])))


def of_onnx(model: nn.Module, x: Tensor, opset: int) -> Case:
    """The network as an ONNX model, exported once; its weights follow the network's."""
    before = at_opset(model, x, opset)
    last: list[onnx.ModelProto] = []
    name = before.graph.input[0].name
    sizes = {name: _array(x)}

    def fold() -> Proof:
        _follow(before, model)
        after, report = fuse_onnx(before, prove=False)
        last[:] = [after]
        return proof_of(before, after, report, None)

    def stored() -> list[Stored]:
        old = {t.name for t in before.graph.initializer}
        held = {t.name: t for t in last[0].graph.initializer if t.name not in old}
        return [
            _of_protos(held[node.input[1]], held.get(node.input[2]) if len(node.input) > 2 else None)
            for node in last[0].graph.node
            if node.op_type in ("Conv", "Gemm") and node.input[1] in held
        ]

    def failed() -> bool:
        return any(not c.passed for c in region_comparisons(before, last[0], sizes, str)[0])

    return Case(fold, stored, failed)


def _of_protos(weight: onnx.TensorProto, bias: onnx.TensorProto | None) -> Stored:
    def read(proto: onnx.TensorProto) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(proto).astype(np.float64))

    def put(new: Tensor, shift: Tensor | None) -> None:
        for proto, value in ((weight, new), (bias, shift)):
            if proto is not None and value is not None:
                kind = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
                proto.CopyFrom(numpy_helper.from_array(value.numpy().astype(kind), proto.name))

    return Stored(read(weight), None if bias is None else read(bias), put)


def at_opset(model: nn.Module, x: Tensor, opset: int) -> onnx.ModelProto:
    """The network as torch exports it at any opset, batch normalisation unfolded."""
    if opset >= _FIRST_OF_OURS:
        return exported(model, x, opset=opset, optimise=False)
    return exported_by_tracing(model, x, opset)


def _follow(model: onnx.ModelProto, source: nn.Module) -> None:
    """Give the initialisers named after the network's tensors their numbers."""
    held = source.state_dict()
    for tensor in model.graph.initializer:
        value = held.get(tensor.name)
        if value is not None and tuple(value.shape) == tuple(tensor.dims):
            tensor.CopyFrom(numpy_helper.from_array(_array(value), tensor.name))


def _array(t: Tensor) -> np.ndarray:
    if t.dtype != torch.bfloat16:
        return t.detach().numpy()
    return t.detach().float().numpy().astype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))


def measured(name: str, dtype: torch.dtype, form: str) -> dict[str, object]:
    """One piece."""
    started = time.perf_counter()
    model, x = network(name)
    model, x = randomise(model).to(dtype), x.to(dtype)
    if form == "checkpoint":
        one = of_checkpoint(model, x)
    else:
        one = of_program(model, x) if form == "program" else of_onnx(model, x, int(form.split()[1]))
    refused: list[str] = []
    unmeasured: set[str] = set()
    compared = wrong = 0
    for seed in range(SEEDS):
        randomise(model, seed)
        proof = one.fold()
        compared += len(proof.agreement.blocks)
        unmeasured.update(r.why for r in proof.unmeasured)
        wrong += sum(not c.passed for c in proof.agreement.blocks)
        if not proof.agreement.passed:
            refused.append(proof.agreement.verdict)
    return {
        "right": SEEDS,
        "refused": refused,
        "regions": compared,
        "refused_regions": wrong,
        "unmeasured": sorted(unmeasured),
        "wrong": dict(_wrong(one, dtype)),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _wrong(one: Case, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """By kind and delta: found, tried, and how many more rounded to the same numbers."""
    layers = one.stored()
    generator = torch.Generator().manual_seed(0)
    for kind, change in KINDS.items():
        counts: dict[str, list[int]] = {}
        for delta in DELTAS if kind != "channels swapped" else (1.0,):
            layer = layers[int(torch.randint(len(layers), (), generator=generator))]
            weight, bias = layer.weight.double(), None if layer.bias is None else layer.bias.double()
            new = change(weight.clone(), None if bias is None else bias.clone(), delta, generator)
            row = counts.setdefault(f"{delta:g}", [0, 0, 0])
            if new is None:
                continue
            if _rounded(new, dtype) == _rounded((weight, bias), dtype):
                row[2] += 1
                continue
            layer.put(*new)
            row[0] += one.failed()
            row[1] += 1
            layer.put(weight, bias)
        yield kind, counts


def _rounded(numbers: tuple[Tensor, Tensor | None], dtype: torch.dtype) -> list[list[float]]:
    return [t.to(dtype).flatten().tolist() for t in numbers if t is not None]


Change = Callable[[Tensor, Tensor | None, float, torch.Generator], tuple[Tensor, Tensor | None] | None]


def _scaled(
    weight: Tensor, bias: Tensor | None, delta: float, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    sign = 1 if bool(torch.randint(2, (), generator=generator)) else -1
    return weight * (1 + sign * delta), bias


def _shifted(
    weight: Tensor, bias: Tensor | None, delta: float, generator: torch.Generator
) -> tuple[Tensor, Tensor | None] | None:
    if bias is None:
        return None
    channel = int(torch.randint(len(bias), (), generator=generator))
    bias[channel] += delta * torch.linalg.vector_norm(weight[channel])
    return weight, bias


def _column(
    weight: Tensor, bias: Tensor | None, delta: float, generator: torch.Generator
) -> tuple[Tensor, Tensor | None] | None:
    del generator
    if weight.dim() < 4 or weight.shape[3] == 1:
        return None
    weight[..., 0] *= 1 + delta
    return weight, bias


def _swapped(
    weight: Tensor, bias: Tensor | None, delta: float, generator: torch.Generator
) -> tuple[Tensor, Tensor | None] | None:
    del delta
    if len(weight) < 2:
        return None
    first, second = torch.randperm(len(weight), generator=generator)[:2].tolist()
    weight[[first, second]] = weight[[second, first]]
    return weight, bias


KINDS: Mapping[str, Change] = {
    "weights scaled": _scaled, "one bias shifted": _shifted, "border column of taps": _column,
    "channels swapped": _swapped,
}  # fmt: skip


def pieces() -> Iterator[tuple[str, str, str]]:
    """Network, type and form of every piece; the small networks first, in every form."""
    for name in NETWORKS:
        for form in FORMS:
            for dtype in DTYPES:
                if form != "checkpoint" or is_own(name):
                    yield name, dtype, form


def write_page(content: Mapping[str, object]) -> None:
    """The table of docs/proof.md, from the result."""
    text = PAGE.read_text(encoding="utf-8")
    write_whole({PAGE: between(text, power_table(content)).encode()})


def main() -> None:
    """Measure what is missing, piece by piece."""
    parser = asking(__doc__)
    parser.add_argument("--minutes", type=positive, default=24 * 60, help="start no piece after so many")
    parser.add_argument("--only", default="", help="pieces whose name holds this")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    content = read_result(RESULT, SCHEMA) or {"schema": SCHEMA, "environment": environment(), "pieces": {}}
    for name, dtype, form in () if chosen.table else pieces():
        key = f"{name}, {dtype}, {form}"
        if key in content["pieces"] or chosen.only not in key:
            continue
        if time.perf_counter() - started > 60 * chosen.minutes:
            break
        try:
            content["pieces"][key] = measured(name, DTYPES[dtype], form)
        except Exception as error:  # noqa: BLE001  # what an exporter or a runtime cannot do is a finding
            content["pieces"][key] = {"not_possible": (str(error).strip().splitlines() or [type(error).__name__])[0]}
        write_result(RESULT, content)
        one = content["pieces"][key]
        print(key, one.get("not_possible", ""), one.get("refused", ""), one.get("seconds", ""), flush=True)
    write_page(content)


if __name__ == "__main__":
    main()

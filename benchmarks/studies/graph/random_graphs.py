"""Random networks of pieces as authors spell them, fused and compared in float64: which are wrong, refused, or crash.

    python benchmarks/studies/graph/random_graphs.py [--graphs 2000] [--first SEED] [--jobs 2] [--output FILE]

Each network is two to five pieces of `pieces.py`, in one of five forms by its seed: ONNX of torch's older exporter in
float64 (traced) or in float32 with its proof (proved), a program in either, or ONNX of the newer exporter (dynamo).
Half have open sizes. Fused and unfused graph run in float64 on the example, on three images, on odd sizes and on sides
of 1, as far as the unfused one takes them. What runs again goes on where it stopped, and tries once more what failed.
"""

from __future__ import annotations

import itertools
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import asking, head, read_result, write_result
from repconv.benchmarks.studies.graph.drawn.pieces import grown
from repconv.benchmarks.studies.graph.networks import to_onnx, to_onnx_dynamo
from repconv.errors import VerificationError
from repconv.graph import foresee_onnx, fuse_onnx, fuse_program
from repconv.graph.onnx.proof.float64 import evaluate
from repconv.graph.program.fuse import rewrite
from repconv.proof.report import FusionReport

SCHEMA = "repconv.random_graphs/1"
FORMS = ("traced", "proved", "program", "traced", "proved", "dynamo", "traced", "proved", "program", "program proved")
"""The form of a network, by the last digit of its seed."""
EXACT, ROUNDED = 1e-9, 3e-5
"""How far a fused graph may be from the unfused one in float64, relative to the largest number: of float64 weights, and
of float32 ones, each rounded once."""
NOT_EXPORTED = "not exported"
GOOD = ("right", NOT_EXPORTED)
AT_ONCE = 50
"""Networks after which the result is written."""


@dataclass(frozen=True)
class Outcome:
    """What came of one network.

    verdict: right, wrong (values), refused (the proof says no, and the values are right), crashed, foreseen (what was
        foreseen is not what was done), or not exported. error: the largest difference, relative.
    """

    seed: int
    form: str
    pieces: tuple[str, ...]
    verdict: str
    folded: int = 0
    sizes: int = 0
    error: float = 0.0
    said: str = ""


def tried(seed: int) -> Outcome:
    """One network, fused and compared."""
    form = FORMS[seed % len(FORMS)]
    network, x, names = grown(seed, 2 + seed // len(FORMS) % 4)
    is_open = bool(seed // (4 * len(FORMS)) % 2) and form != "dynamo"

    def outcome(verdict: str, **more: Any) -> Outcome:  # noqa: ANN401  # fields of Outcome
        return Outcome(seed, form, tuple(names), verdict, **more)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = _exported(network, x, form, is_open=is_open)
        if isinstance(given, onnx.ModelProto):
            _of_onnx(given)(x)  # what exporters write is not always right
    except Exception as error:  # noqa: BLE001  # exporters raise whatever they like
        return outcome(NOT_EXPORTED, said=_line(error))
    try:
        fused, report, said = _fused(given)
        found = list(_differences(fused, list(_sizes(seed, x) if is_open else [x])))
    except Exception as error:  # noqa: BLE001  # a crash is what is looked for
        return outcome("crashed", said=_line(error))
    most = max(found, default=float("nan"))
    is_right = most <= (ROUNDED if "proved" in form else EXACT)
    verdict = ("refused" if said else "right") if is_right else "wrong"
    if is_right and not said and isinstance(given, onnx.ModelProto) and not _is_foreseen(given, report):
        verdict = "foreseen"
    return outcome(verdict, folded=len(report.layers), sizes=len(found), error=most, said=said)


Runner = Callable[[Tensor], list[Tensor]]
Given = onnx.ModelProto | ExportedProgram


def _exported(network: nn.Module, x: Tensor, form: str, *, is_open: bool) -> Given:
    """The network as ONNX or as a program."""
    if "proved" not in form:
        network, x = network.double(), x.double()
    axes = {axis: f"d{axis}" for axis in range(x.dim()) if axis != 1} if is_open else {}
    if "program" in form:
        dynamic = dict.fromkeys(axes, Dim.AUTO)
        return torch.export.export(network, (x,), dynamic_shapes=(dynamic,) if is_open else None)
    if form == "dynamo":
        return to_onnx_dynamo(network, x)
    return to_onnx(network, x, 17, do_constant_folding=False, dynamic_axes={"x": axes} if is_open else None)


def _fused(given: Given) -> tuple[tuple[Runner, Runner], FusionReport, str]:
    """The unfused and the fused graph to be run, the report, and what the proof has against it."""
    said = ""
    wide = _is_wide(given)
    if isinstance(given, onnx.ModelProto):
        try:
            after, report = fuse_onnx(given, prove=not wide)
        except VerificationError as error:
            said = _line(error)
            after, report = fuse_onnx(given, prove=False)
        return (_of_onnx(given), _of_onnx(after)), report, said
    rewritten = rewrite(given)
    if not wide:
        try:
            fuse_program(given)
        except VerificationError as error:
            said = _line(error)
    admitted = given.module()

    def before(x: Tensor) -> list[Tensor]:
        admitted(x.to(_example(given).dtype))  # it looks at sizes, and raises
        return _of_module(rewritten.before)(x)

    return (before, _of_module(rewritten.after)), rewritten.report, said


def _is_wide(given: Given) -> bool:
    if isinstance(given, onnx.ModelProto):
        return int(given.graph.input[0].type.tensor_type.elem_type) == onnx.TensorProto.DOUBLE
    return _example(given).dtype == torch.float64


def _example(program: ExportedProgram) -> Tensor:
    """The one input of a network of pieces."""
    found: Tensor = torch.utils._pytree.tree_leaves(program.example_inputs)[0]  # noqa: SLF001  # torch.export's own
    return found


def _of_onnx(model: onnx.ModelProto) -> Runner:
    names = [value.name for value in model.graph.output]
    return lambda x: [
        torch.from_numpy(np.array(y, order="C")) for y in evaluate(model, {"x": x.double().numpy()}, names)
    ]


def _of_module(module: fx.GraphModule) -> Runner:
    def run(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(module.double().forward(x.double()))  # past hooks, which look at sizes

    return run


def _sizes(seed: int, x: Tensor) -> Iterator[Tensor]:
    """The example, and others: three images, sides odd, larger, or 1."""
    generator = torch.Generator().manual_seed(seed)
    yield x
    for batch, sides in ((3, x.shape[2:]), (1, [n + 1 for n in x.shape[2:]]), (2, [2 * n + 3 for n in x.shape[2:]]),
                         (1, [1 for _ in x.shape[2:]])):  # fmt: skip
        yield torch.randn(batch, x.shape[1], *sides, generator=generator)


def _differences(graphs: tuple[Runner, Runner], inputs: Sequence[Tensor]) -> Iterator[float]:
    """Of every input that the unfused graph takes, how far the fused one is from it."""
    before, after = graphs
    for index, x in enumerate(inputs):
        try:
            wanted = before(x)
        except Exception:  # it does not take that size
            if not index:
                raise
            continue
        for want, got in zip(wanted, after(x), strict=True):
            if want.shape != got.shape:
                yield float("inf")
            elif want.numel():
                yield float((want - got).abs().max() / want.abs().max().clamp(min=1e-30))


def _is_foreseen(model: onnx.ModelProto, report: FusionReport) -> bool:
    """True if foresight tells what was done."""
    told = foresee_onnx(model)
    done = Counter((layer.geometry, layer.branches) for layer in report.layers)
    same = Counter((layer.geometry, layer.nodes) for layer in told.layers) == done
    return same and told.convolutions == (report.before.convolutions, report.after.convolutions)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def summed(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """How many there are of each verdict, form and piece."""
    return {
        "graphs": sum(each.verdict != NOT_EXPORTED for each in outcomes),
        "verdicts": dict(Counter(each.verdict for each in outcomes)),
        "forms": dict(Counter(each.form for each in outcomes if each.verdict != NOT_EXPORTED)),
        "pieces": dict(Counter(name for each in outcomes for name in each.pieces)),
        "folded": sum(each.folded for each in outcomes),
        "comparisons": sum(each.sizes for each in outcomes),
        "largest_error": {
            kind: max(
                (e.error for e in outcomes if ("proved" in e.form) == (kind == "float32") and e.sizes), default=0.0
            )
            for kind in ("float64", "float32")
        },
    }


def main() -> None:
    """Try networks until so many were exported, and keep what each gave that was not right."""
    parser = asking(__doc__, "random_graphs")
    parser.add_argument("--graphs", type=int, default=2000, help="how many that an exporter takes (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each (%(default)s)")
    asked = parser.parse_args()
    kept = read_result(asked.output, SCHEMA) or {}
    known = kept.get("outcomes", []) if kept.get("first") == asked.first else []
    outcomes = [Outcome(**{**each, "pieces": tuple(each["pieces"])}) for each in known]
    with multiprocessing.get_context("spawn").Pool(asked.jobs, torch.set_num_threads, (1,)) as pool:
        again = pool.imap(tried, [each.seed for each in outcomes if each.verdict not in GOOD])
        outcomes = [each if each.verdict in GOOD else next(again) for each in outcomes]
        left = asked.graphs - sum(each.verdict != NOT_EXPORTED for each in outcomes)
        seeds = itertools.count(asked.first + len(outcomes))
        while left > 0:
            for found in pool.imap(tried, itertools.islice(seeds, min(left, AT_ONCE))):
                outcomes.append(found)
                left -= found.verdict != NOT_EXPORTED
                if found.verdict not in GOOD:
                    print(found, flush=True)
            _write(asked, outcomes)
    _write(asked, outcomes)
    print(summed(outcomes))


def _write(asked: Any, outcomes: Sequence[Outcome]) -> None:  # noqa: ANN401  # of argparse
    write_result(asked.output, {
        **head(__file__, SCHEMA, f"--graphs {asked.graphs} --first {asked.first}"),
        "environment": environment(), "first": asked.first, **summed(outcomes),
        "outcomes": [asdict(each) for each in outcomes],
    })  # fmt: skip


if __name__ == "__main__":
    main()

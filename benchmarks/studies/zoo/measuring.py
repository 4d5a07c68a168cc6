"""What is measured of one network, part by part: as a program of torch.export and as ONNX, each fused and proved."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import onnx
import torch
from torch import Tensor, fx

from repconv.errors import first_line
from repconv.fusing import exported_program
from repconv.graph import fuse_onnx
from repconv.graph.onnx.facts import Facts
from repconv.graph.onnx.fuse import proof_of
from repconv.graph.program.facts import ProgramFacts
from repconv.graph.program.fuse import export_again, rewrite
from repconv.graph.program.proof.prove import prove_program
from repconv.proof.float64 import float64_reference
from repconv.proof.report import FusionReport, GraphRefusal, Proof

from ...environment import environment
from ..common import resident
from ..graph.graph_counts import count, latency, program_calls, relative, session
from ..graph.networks import to_onnx, to_onnx_dynamo
from ..graph.reasons import Operation, of_onnx, of_program, unexplained, why_norms_stay
from .subjects import Subject, subject, tensors

FORMS = ("program", "onnx")
"""What of a network is fused: the program of torch.export, and the file that an exporter writes."""
COUNTED = ("convolutions", "linears", "batch_norms", "other_norms", "adds", "muls")
_NORMS = ("layer_norm", "group_norm", "instance_norm")
_ONNX_NORMS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization")
ROUNDS = 60
"""Of timing."""
Made = TypeVar("Made")
Part = dict[str, Any]


@dataclass(frozen=True)
class Spent:
    """What some work took: seconds of this process's processors, and bytes beyond what was held before, at most."""

    cpu_s: float
    peak_bytes: int

    def to_dict(self) -> Part:
        """Rounded, for JSON."""
        return {"cpu_s": round(self.cpu_s, 3), "peak_mb": round(self.peak_bytes / 1e6, 1)}


def spent(work: Callable[[], Made]) -> tuple[Made, Spent]:
    """What `work` gives, and what it took."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest so far is forgotten
    held, used = resident("VmRSS"), time.process_time()
    made = work()
    return made, Spent(time.process_time() - used, max(0, resident("VmHWM") - held))


def measured(name: str, side: int | None = None) -> Iterator[tuple[str, Part]]:
    """The parts of a network's row, each as soon as it is known: what it is, then either form.

    A part that fails has `failure`: the step it failed in, and what was said.
    """
    torch.set_num_threads(1)
    one = subject(name, side)
    wanted = _reference(one)
    with torch.no_grad():
        own = list(one.model(one.x))
    yield (
        "source",
        {
            "parameters": sum(parameter.numel() for parameter in one.model.parameters()),
            "input": list(one.x.shape),
            "finite": all(bool(torch.isfinite(t).all()) for t in own),
            "reference": "float64" if wanted is not None else "none: the network does not run in float64",
            "own_error": None if wanted is None else furthest(own, wanted),
        },
    )
    for form, work in (("program", _program), ("onnx", _onnx)):
        part: Part = {}
        try:
            for found in work(one, wanted):
                part |= found
        except Exception as error:  # noqa: BLE001  # a crash is what is looked for
            step = next((step for step in ("export", "fuse", "prove") if step not in part), "compare")
            part["failure"] = {"step": step, "kind": type(error).__name__, "said": first_line(error)[:300]}
        yield form, part


def _reference(one: Subject) -> list[Tensor] | None:
    """What the network gives in float64; None where it does not run so."""
    try:
        return list(tensors(float64_reference(one.model)(one.x)))
    except Exception:  # noqa: BLE001  # the network's own code
        return None


def furthest(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference of any output over the root mean square of that output in float64."""
    return max(relative(a, b) for a, b in zip(got, wanted, strict=True))


def _program(one: Subject, wanted: list[Tensor] | None) -> Iterator[Part]:
    program, took = spent(lambda: exported_program(one.model, one.x))
    yield {"export": took.to_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rewritten, took = spent(lambda: rewrite(program))
        fused, again = spent(lambda: export_again(program, rewritten))
    report = rewritten.report
    yield {
        "fuse": took.to_dict(),
        "export_again": again.to_dict(),
        "before": _of_graph(rewritten.before, report.before.convolutions, report.before.batch_norms),
        "after": _of_graph(rewritten.after, report.after.convolutions, report.after.batch_norms),
        "layers": len(report.layers),
        **_reasons(report, of_program(rewritten)),
    }
    proof, took = spent(lambda: prove_program(rewritten, fused, one.model, [(one.x,)]))
    yield _proof(proof, took)
    module = fused.module()
    with torch.no_grad():
        got = list(module(one.x))
    yield {"error": None if wanted is None else furthest(got, wanted), "to_own": _furthest_to_own(one, got)}


def _onnx(one: Subject, wanted: list[Tensor] | None) -> Iterator[Part]:
    (model, exporter), took = spent(lambda: as_onnx(one))
    yield {"export": took.to_dict() | {"exporter": exporter}}
    (fused, report), took = spent(lambda: fuse_onnx(model, prove=False))
    yield {
        "fuse": took.to_dict(),
        "before": _of_file(model), "after": _of_file(fused),
        "layers": len(report.layers),
        **_reasons(report, of_onnx(model, fused, report)),
    }  # fmt: skip
    proof, took = spent(lambda: proof_of(model, fused, report, None))
    yield _proof(proof, took)
    before, after = (
        [torch.from_numpy(a) for a in session(each).run(None, {"x": one.x.numpy()})] for each in (model, fused)
    )
    yield {
        "own_error": None if wanted is None else furthest(before, wanted),
        "error": None if wanted is None else furthest(after, wanted),
        "to_own": furthest(after, [t.double() for t in before]),
    }


def _furthest_to_own(one: Subject, got: Sequence[Tensor]) -> float:
    """How far from what the unfused network gives in its own precision."""
    with torch.no_grad():
        return furthest(got, [t.double() for t in one.model(one.x)])


def as_onnx(one: Subject) -> tuple[onnx.ModelProto, str]:
    """The network as ONNX, input `x`, and which of torch's exporters wrote it: the older, or else the newer."""
    try:
        return to_onnx(one.model, one.x), "torchscript"
    except Exception as first:  # noqa: BLE001  # exporters raise whatever they like
        try:
            return to_onnx_dynamo(one.model, one.x), "dynamo"
        except Exception as error:
            raise RuntimeError(f"neither exporter takes it: {first_line(first)}; {first_line(error)}") from error


def _of_graph(module: fx.GraphModule, convolutions: int, batch_norms: int) -> Mapping[str, int]:
    """What a program calls, by kind; a product by a constant matrix is a linear layer, however it is spelt."""
    facts = ProgramFacts(module)
    products = [n for n in module.graph.nodes if str(n.target).startswith(("aten.matmul.", "aten.mm.", "aten.addmm."))]
    by_constants = sum(any(facts.is_constant(a) for a in n.all_input_nodes) for n in products)
    return {
        "convolutions": convolutions,
        "linears": program_calls(module, "linear") + by_constants,
        "batch_norms": batch_norms,
        "other_norms": sum(program_calls(module, norm) for norm in _NORMS),
        "adds": program_calls(module, "add"),
        "muls": program_calls(module, "mul"),
    }


def _of_file(model: onnx.ModelProto) -> Mapping[str, int | None]:
    """The same of an ONNX model."""
    facts, kinds, found = Facts(model), Counter(node.op_type for node in model.graph.node), count(model)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    by_constants = sum(any(facts.is_constant(name) for name in node.input) for node in products)
    return {
        "linears": kinds["Gemm"] + by_constants,
        "other_norms": sum(kinds[norm] for norm in _ONNX_NORMS),
        **{key: found[key] for key in ("convolutions", "batch_norms", "adds", "muls")},
    }


def _reasons(report: FusionReport, left: Sequence[Operation]) -> Part:
    """How often each kind of reason is given, what kinds norms stay for, and how many pairs of neighbours have none."""
    kinds = Counter(each.kind for each in report.refusals if isinstance(each, GraphRefusal))
    return {
        "reasons": dict(kinds.most_common()),
        "norms_stay": dict(why_norms_stay(left, report.refusals).most_common()),
        "unexplained": len(unexplained(left, report.refusals)),
    }


def _proof(proof: Proof, took: Spent) -> Part:
    """Whether the proof holds, and the comparison nearest to its limit, region by region and end to end."""
    found = proof.agreement
    nothing = not found.comparisons
    return {
        "prove": took.to_dict()
        | {
            "passed": True if nothing and not proof.unmeasured else found.passed,
            "verdict": "nothing was fused" if nothing else found.verdict,
            "comparisons": len(found.comparisons),
            "unmeasured": [f"{each.where}: {each.why}"[:300] for each in proof.unmeasured],
        }
    }


def timed(name: str) -> Part:
    """Latency of one image of the fused file beside the unfused one in onnxruntime, in turns."""
    torch.set_num_threads(1)
    one = subject(name)
    model, _ = as_onnx(one)
    fused, _ = fuse_onnx(model, prove=False)
    return dict(latency(fused, model, one.x, ROUNDS)) | {"environment": environment()}

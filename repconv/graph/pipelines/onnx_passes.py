"""`OnnxFusePass`: fusing as a pass over models of onnx_ir."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir
from onnx_ir.passes import InPlacePass, PassResult

from ...errors import FusionError
from ...proof.report import FusionReport
from ..onnx.fuse import fuse_onnx
from ..onnx.proof.prove import Feeds


class OnnxFusePass(InPlacePass):
    """Fuses an `onnx_ir.Model` as `fuse_onnx` does, alone or in `onnx_ir.passes.Sequential` and `PassManager`.

    In place, as the passes of `onnxscript.optimizer` are: the model object stays, its graph is another where something
    was fused, and is left alone where there is nothing to gain. `onnx_ir.passes.functionalize(OnnxFusePass())` keeps
    the model that is given. Calls of a model's own functions are not looked into: inline them before, as
    `onnxscript.optimizer` does.

    Attributes:
        reports: a `FusionReport` of each run, in order: what was done, what stays and why, and the proof.
    """

    def __init__(self, feeds: Sequence[Feeds] | None = None, *, prove: bool = True) -> None:
        """A pass.

        Args:
            feeds: inputs by name to compare on, one mapping a run; None: two random draws of what the model declares.
            prove: False leaves the comparing out, and the reports say so.
        """
        super().__init__()
        self.feeds = feeds
        self.prove = prove
        self.reports: list[FusionReport] = []

    def call(self, model: onnx_ir.Model) -> PassResult:
        """Fuse the model's graph. Weights beside the model's file are read.

        Raises:
            FusionError: the model is not valid, or a file of weights cannot be read.
            VerificationError: the result differs by more than rounding; `error.report` has every comparison. A
                `Sequential` raises a `PassError`, whose `__cause__` it is.
            SourceError: onnxruntime cannot run the model on the given `feeds`.
        """
        try:
            given = onnx_ir.to_proto(onnx_ir.external_data.load_to_model(model.clone()))
        except (OSError, ValueError, TypeError, onnx_ir.serde.SerdeError) as error:
            raise FusionError(f"the model cannot be written as ONNX: {error}") from error
        fused, report = fuse_onnx(given, self.feeds, prove=self.prove)
        self.reports.append(report)
        modified = list(fused.graph.node) != list(given.graph.node)
        if modified:
            model.graph = onnx_ir.from_proto(fused).graph
        return PassResult(model, modified)

"""Programs in int8 as ExecuTorch takes them: PyTorch's quantisation of exported graphs, as XNNPACK computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from repconv.errors import BuildError, first_line

from ...artefacts.runtime import needed
from ...onnx.quiet import heard, quiet
from ...program.exporter import input_type, sized
from ...program.int8 import Prepared
from ...settings import Quantization, Span
from ...targets import Target


def in_int8(
    target: Target, ready: Prepared, calibration: Sequence[Tensor], asked: Quantization, sizes: Sequence[Span]
) -> ExportedProgram:
    """A program that rounds weights and activations to int8 where XNNPACK has kernels for that; inputs stay float32.

    Weights are symmetric; activations reach from the least to the largest value over all batches.

    Args:
        target: the row.
        ready: the float32 program, and which of its weights stay so.
        calibration: batches as it takes them.
        asked: scales of weights.
        sizes: of its input, [n, c, ...].

    Raises:
        BackendError: a package is missing.
        BuildError: it cannot be quantised.
    """
    package = target.packages[0]
    way, steps, observers = (
        needed(target, module, package)
        for module in (
            "executorch.backends.xnnpack.quantizer.xnnpack_quantizer",
            "torchao.quantization.pt2e.quantize_pt2e",
            "torchao.quantization.pt2e.observer",
        )
    )
    config = way.get_symmetric_quantization_config(is_per_channel=asked.per_channel)
    extremes = observers.MinMaxObserver.with_args(eps=2**-12)
    activation = replace(config.input_activation, observer_or_fake_quant_ctr=extremes)
    config = replace(config, input_activation=activation, output_activation=activation)
    try:
        with quiet(), heard([]), torch.no_grad():
            quantizer = way.XNNPACKQuantizer().set_global(config)
            quantizer.set_filter_function(_reads_none(ready.weights))
            prepared = steps.prepare_pt2e(ready.program.module(), quantizer)
            for batch in calibration:
                prepared(batch)
            made: fx.GraphModule = steps.convert_pt2e(prepared)
    except Exception as error:  # it raises anything
        raise BuildError(f"PyTorch cannot quantise the program: {first_line(error)}") from error
    return sized(made, sizes, input_type(ready.program))


def _reads_none(weights: frozenset[str]) -> Callable[[fx.Node], bool]:
    """Whether a node of a program's module reads none of these weights, by their names in the program."""

    def reads_none(node: fx.Node) -> bool:
        return not any(source.op == "get_attr" and source.target in weights for source in node.all_input_nodes)

    return reads_none

"""OpenVINO IR of an ONNX model, and IR in its runtime.

The precision a network runs in is a hint to the compiler, not part of the IR: without one OpenVINO computes in bf16
wherever the processor can. So every compilation here gives it, reads back what came of it, and the IR carries it under
`repconv/inference_precision` for whoever loads it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from repconv.errors import BackendError, BuildError
from repconv.graph.onnx.facts import first_line

from ..artefacts.built import Built, Run
from ..int8.equalise import equalise
from ..int8.quantize import kept_float
from ..onnx.quiet import quiet
from ..settings import BuildSettings, Quantization, Span

HINT = "INFERENCE_PRECISION_HINT"
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
_CAPABILITY = {"f16": "FP16", "bf16": "BF16"}


def build_openvino(
    model: onnx.ModelProto, settings: BuildSettings, spans: tuple[Span, Span], calibration: Sequence[Tensor] | None
) -> Built:
    """`model`, float32, as IR.

    Args:
        model: with sizes open where `settings` gives ranges.
        settings: fp16 stores weights in half precision; int8 is done by NNCF.
        spans: height and width.
        calibration: batches for int8.

    Raises:
        BackendError: OpenVINO, or NNCF for int8, is not installed.
        BuildError: OpenVINO cannot read or compile the model, or NNCF cannot quantise it.
    """
    ov = import_openvino()
    streams = 0
    kept: tuple[str, ...] = ()
    if calibration is not None:
        kept = kept_float(model, calibration, settings.quantization)
        if settings.quantization.equalise:
            model, streams = equalise(model)
    with _failing_in_words("OpenVINO cannot convert the model"), tempfile.TemporaryDirectory() as folder:
        network = ov.Core().read_model(model.SerializeToString())
        channels = network.input(0).partial_shape[1].get_length()
        sizes = [settings.batch, Span.of(channels), *spans]
        dimensions = [ov.Dimension(s.usual) if s.fixed else ov.Dimension(s.least, s.most) for s in sizes]
        network.reshape({network.input(0): ov.PartialShape(dimensions)})
        if calibration is not None:
            network = _quantise(network, calibration, settings.quantization, kept)
        hint = HINTS[settings.precision]
        network.set_rt_info(hint, ["repconv", "inference_precision"])
        path = Path(folder) / "model.xml"
        ov.save_model(network, str(path), compress_to_fp16=settings.precision == "fp16")
        files = {".bin": path.with_suffix(".bin").read_bytes(), ".xml": path.read_bytes()}
        run, observed = compile_openvino(path, hint)
    weights = Counter(
        o.get_element_type().get_type_name() for o in network.get_ops() if o.get_type_name() == "Constant"
    )
    details: dict[str, object] = {"constants_before_saving": dict(weights)}
    if settings.precision == "int8":
        details |= {"equalised_streams": streams, "kept_float": list(kept)}
    return Built(files, run, f"OpenVINO {ov.__version__.split('-')[0]}, CPU", None, observed, details)


def compile_openvino(path: Path, hint: str) -> tuple[Run, dict[str, str]]:
    """IR compiled for the CPU with an explicit precision, as a function, and what was read back.

    Raises:
        BackendError: OpenVINO is not installed.
        BuildError: it cannot compile the model.
    """
    compiled, observed = compiled_network(path, hint)
    ov = import_openvino()
    half = compiled.input(0).element_type == ov.Type.bf16

    def run(x: Tensor) -> list[Tensor]:
        request = compiled.create_infer_request()
        if half:
            bits = np.ascontiguousarray(x.to(torch.bfloat16).view(torch.int16).numpy())
            request.set_input_tensor(ov.Tensor(bits, list(bits.shape), ov.Type.bf16))
        else:
            request.set_input_tensor(ov.Tensor(np.ascontiguousarray(x.numpy())))
        request.infer()
        return [_tensor(request.get_output_tensor(i), ov) for i in range(len(compiled.outputs))]

    return run, observed


def compiled_network(path: Path, hint: str, more: Mapping[str, object] | None = None) -> tuple[Any, dict[str, str]]:
    """IR or an ONNX file compiled for the CPU, and what was read back; errors as `compile_openvino`.

    Where the processor cannot compute in the precision, OpenVINO would take another without a word (bf16 for f16), so
    then float32 is asked for instead.

    Args:
        path: the file.
        hint: precision to compute in, as OpenVINO calls it.
        more: other properties of OpenVINO.
    """
    ov = import_openvino()
    with _failing_in_words("OpenVINO cannot compile the model"):
        core = ov.Core()
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        used = hint if _CAPABILITY.get(hint) is None or _CAPABILITY[hint] in able else "f32"
        compiled = core.compile_model(core.read_model(str(path)), "CPU", {HINT: used, **(more or {})})
    found = str(compiled.get_property(HINT).get_type_name())
    kinds = Counter(
        operation.get_rt_info()["runtimePrecision"].astype(str)
        for operation in compiled.get_runtime_model().get_ordered_ops()
        if operation.get_rt_info()["layerType"].astype(str) == "Convolution"
    )
    return compiled, {"inference_precision": found, "asked_precision": hint, "convolutions": _counted(kinds)}


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


def _tensor(found: Any, ov: Any) -> Tensor:  # noqa: ANN401  # OpenVINO is optional
    copied = torch.from_numpy(np.array(found.data))
    return copied.view(torch.bfloat16) if found.element_type == ov.Type.bf16 else copied


def import_openvino() -> Any:  # noqa: ANN401  # optional, so without types
    """The module.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise BackendError("OpenVINO is not installed; install it with: pip install openvino") from None
    return openvino


def _quantise(network: Any, calibration: Sequence[Tensor], asked: Quantization, kept: Sequence[str]) -> Any:  # noqa: ANN401
    """NNCF's post-training quantisation: symmetric weights, activations by least and largest value."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # or it would send statistics of its use over the network
    try:
        with quiet():
            try:
                import nncf
            except ImportError:
                raise BackendError("int8 of OpenVINO needs NNCF; install it with: pip install nncf") from None
            nncf.set_log_level(40)
            advanced = nncf.AdvancedQuantizationParameters(
                weights_quantization_params=nncf.quantization.advanced_parameters.QuantizationParameters(
                    per_channel=asked.per_channel
                )
            )
            batches = [np.ascontiguousarray(batch.numpy()) for batch in calibration]
            # A convolution with a bias becomes two operations.
            names = {operation.get_friendly_name() for operation in network.get_ops()}
            known = [name for layer in kept for name in (layer, f"{layer}/WithoutBiases") if name in names]
            return nncf.quantize(
                network,
                nncf.Dataset(batches),
                subset_size=len(batches),
                advanced_parameters=advanced,
                ignored_scope=nncf.IgnoredScope(names=known),
            )
    finally:
        os.environ.pop("NNCF_CI")
        if before is not None:
            os.environ["NNCF_CI"] = before


@contextlib.contextmanager
def _failing_in_words(what: str) -> Iterator[None]:
    try:
        yield
    except BackendError:
        raise
    except Exception as error:  # OpenVINO and NNCF raise anything
        raise BuildError(f"{what}: {first_line(error)}") from error

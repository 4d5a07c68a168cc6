"""OpenVINO IR of an ONNX model, and IR in its runtime.

The precision a network runs in is a hint to the compiler, not part of the IR: without one OpenVINO computes in bf16
wherever the processor can. So every compilation here gives it, reads back what came of it, and the IR carries it under
`repconv/inference_precision` for whoever loads it.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from repconv.errors import BackendError, BuildError, RepconvError, SourceError, first_line
from repconv.files.held import temporary_folder
from repconv.sources.source import Input

from ..artefacts.artefact import Artefact, opaque_artefact, taken_type
from ..artefacts.built import Built, Lowered, Run
from ..artefacts.loaded import Array, How, Job, Loaded, nothing
from ..artefacts.read_back import counted
from ..artefacts.runtime import Diagnosis, Runtime, tried
from ..int8.equalise import equalise
from ..int8.quantize import kept_float
from ..onnx.quiet import quiet
from ..settings import BuildSettings, Quantization, Span
from ..targets import TARGETS, Target

HINT = "INFERENCE_PRECISION_HINT"
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
_CAPABILITY = {"f16": "FP16", "bf16": "BF16"}


def build(
    target: Target,
    model: onnx.ModelProto,
    settings: BuildSettings,
    spans: tuple[Span, ...],
    calibration: Sequence[Tensor] | None,
) -> Lowered:
    """`model`, float32, as IR.

    Args:
        target: the row.
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
    with _failing_in_words("OpenVINO cannot convert the model"), temporary_folder() as folder:
        network = ov.Core().read_model(model.SerializeToString())
        channels = network.input(0).partial_shape[1].get_length()
        sizes = [settings.batch, Span.of(channels), *spans]
        dimensions = [ov.Dimension(s.usual) if s.fixed else ov.Dimension(s.least, s.most) for s in sizes]
        network.reshape({network.input(0): ov.PartialShape(dimensions)})
        if calibration is not None:
            network = _quantise(network, calibration, settings.quantization, kept)
        hint = HINTS[settings.precision]
        network.set_rt_info(hint, ["repconv", "inference_precision"])
        path = folder / "model.xml"
        ov.save_model(network, str(path), compress_to_fp16=settings.precision == "fp16")
        files = {".bin": path.with_suffix(".bin").read_bytes(), ".xml": path.read_bytes()}
        run, observed = compile_openvino(path, hint)
    weights = Counter(
        o.get_element_type().get_type_name() for o in network.get_ops() if o.get_type_name() == "Constant"
    )
    details: dict[str, object] = {"constants_before_saving": dict(weights)}
    if settings.precision == "int8":
        details |= {"equalised_streams": streams, "kept_float": list(kept)}
    runtime = f"{target.title} {ov.__version__.split('-')[0]}, CPU"
    return Lowered.of(
        model, Built(files=files, run=run, runtime=runtime, not_run=None, observed=observed, details=details)
    )


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
    return compiled, {"inference_precision": found, "asked_precision": hint, "convolutions": counted(kinds)}


def _tensor(found: Any, ov: Any) -> Tensor:  # noqa: ANN401  # OpenVINO is optional
    copied = torch.from_numpy(np.array(found.data))
    return copied.view(torch.bfloat16) if found.element_type == ov.Type.bf16 else copied


def import_openvino() -> Any:  # noqa: ANN401  # optional, so without types
    """The module.

    Raises:
        BackendError: it is not installed.
    """
    return TARGETS["openvino"].imported()


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
    except RepconvError:
        raise
    except Exception as error:  # OpenVINO and NNCF raise anything
        raise BuildError(f"{what}: {first_line(error)}") from error


_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "u8": torch.uint8}


def _open(text: str, path: Path) -> Artefact:
    """IR, compiled for the CPU in the precision it records, or float32.

    Raises:
        BackendError: OpenVINO is not installed.
        SourceError: it cannot be read or compiled, or has other inputs than one tensor of images.
    """
    ov = import_openvino()
    try:
        network = ov.Core().read_model(str(path))
    except RuntimeError as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise SourceError(f"{text}: not readable IR ({said[-1]}); its .bin belongs beside it") from error
    if len(network.inputs) != 1:
        raise SourceError(f"{text} takes {len(network.inputs)} inputs; IR of one input is run")
    where = ["repconv", "inference_precision"]
    hint = str(network.get_rt_info(where).astype(str)) if network.has_rt_info(where) else "f32"
    try:
        run, observed = compile_openvino(path, hint)
    except BuildError as error:
        raise SourceError(f"{text}: {error}") from error
    given = network.input(0)
    taken = taken_type(text, given.element_type.get_type_name(), _TYPES)
    # Inputs are drawn in, and errors judged by, the precision it computes in, whatever type it takes them in.
    computed = {"f16": torch.float16, "bf16": torch.bfloat16}.get(hint, taken)
    sizes = tuple(d.get_length() if d.is_static else None for d in given.partial_shape)
    kind = f"{TARGETS['openvino'].title} in {observed['inference_precision']}"
    return opaque_artefact(text, path, kind, run, taken, Input(given.any_name, computed, sizes))


def _look(target: Target) -> tuple[Diagnosis, ...]:
    def devices() -> tuple[str, ...]:
        core = target.imported().Core()
        found = []
        for device in core.available_devices:
            able = [c for c in core.get_property(device, "OPTIMIZATION_CAPABILITIES") if c in ("FP16", "BF16", "INT8")]
            found.append(f"{device} ({', '.join(sorted(able))})")
        return tuple(found)

    runtime, quantiser = target.packages
    return (
        tried(target.title, runtime, "builds and runs OpenVINO IR", devices),
        tried("NNCF", quantiser, "quantises OpenVINO IR to int8", tuple),
    )


def _load(_: str, job: Job, how: How) -> Loaded:
    """IR, with one request that is used again."""
    wanted: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
    if how.threads is not None:
        wanted["INFERENCE_NUM_THREADS"] = how.threads
    compiled, observed = compiled_network(job.file, HINTS[job.precision], wanted)
    request = compiled.create_infer_request()
    request.set_input_tensor(import_openvino().Tensor(np.load(job.input)))

    def outputs() -> list[Array]:
        request.infer()
        return [np.array(request.get_output_tensor(i).data) for i in range(len(compiled.outputs))]

    threads = str(compiled.get_property("INFERENCE_NUM_THREADS"))
    return Loaded(call=request.infer, wait=nothing, outputs=outputs, observed={**observed, "threads": threads})


RUNTIME = Runtime(build=build, open=_open, look=_look, load=_load)

"""ONNX files, run by onnxruntime.

What it takes to build them is imported where it is used: the process that times onnxruntime holds onnxruntime alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from repconv.errors import BackendError, BuildError
from repconv.files.held import temporary_folder
from repconv.files.record import versions

from ..artefacts.loaded import Array, How, Job, Loaded, nothing
from ..artefacts.runtime import Diagnosis, Runtime
from ..targets import Target

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from ..artefacts.artefact import Artefact
    from ..artefacts.built import Built, Lowered, Run
    from ..settings import BuildSettings, Span


def build(
    _: Target,
    network: onnx.ModelProto,
    settings: BuildSettings,
    _spans: tuple[Span, ...],
    calibration: Sequence[Tensor] | None,
) -> Lowered:
    """See `Runtime.build`."""
    from ..artefacts.built import Lowered
    from ..onnx.lower import lower

    model, quantized = lower(network, settings, calibration, int32_bias=True)

    @cache
    def load() -> Built:
        return loaded(model, settings.precision)

    return Lowered(
        model=model,
        quantized=quantized,
        make=lambda: _written(model),
        load=load,
        shown=lambda: runnable(load(), model, settings.precision),
    )


def loaded(model: onnx.ModelProto, precision: str, *, exact_integers: bool = False) -> Built:
    """An ONNX file; onnxruntime has no bf16 convolution on CPUs, so OpenVINO runs those, where it is installed.

    With `exact_integers` for a runtime that never saturates, else as onnxruntime runs it here by default.
    """
    from ..onnx.exporter import onnx_function

    built = _written(model)
    content = built.files[".onnx"]
    try:
        function = onnx_function(content, exact_integers=exact_integers)
    except BuildError as error:
        if precision != "bf16":
            raise
        return _bf16_in_openvino(content, str(error))
    return replace(built, run=lambda x: _tuple(function(x)))


def runnable(own: Built, model: onnx.ModelProto, precision: str) -> Built:
    """`own`, or where no runtime for its half precision is here, the model in float32 between its roundings."""
    if own.run is not None:
        return own
    from ..artefacts.built import MADE_OF, Built
    from ..onnx.exporter import onnx_function
    from ..onnx.half import in_float32

    function = onnx_function(in_float32(model).SerializeToString())
    runtime = f"{_RUNTIME}, in float32 between roundings to {precision}"
    run: Run = lambda x: _tuple(function(x.float() if x.is_floating_point() else x))  # noqa: E731
    return Built(files={}, run=run, runtime=runtime, stands_in=MADE_OF)


_RUNTIME = f"onnxruntime {onnxruntime.__version__}, CPU"


def _written(model: onnx.ModelProto) -> Built:
    from ..artefacts.built import Built

    return Built(
        files={".onnx": model.SerializeToString(deterministic=True)}, run=None, runtime=_RUNTIME, observed=_types(model)
    )


def _bf16_in_openvino(content: bytes, why: str) -> Built:
    from ..artefacts.built import Built
    from .openvino import compile_openvino

    with temporary_folder() as folder:
        path = folder / "model.onnx"
        path.write_bytes(content)
        try:
            run, observed = compile_openvino(path, "bf16")
        except BackendError:
            return Built(
                files={".onnx": content},
                run=None,
                runtime="onnxruntime",
                not_run=f"{why}; OpenVINO, which can, is not installed",
            )
    version = versions().get("openvino", "")
    return Built(
        files={".onnx": content},
        run=run,
        runtime=f"OpenVINO {version}, CPU (onnxruntime has no bf16)",
        observed=observed,
    )


def _tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def _types(model: onnx.ModelProto) -> dict[str, str]:
    """How many weights are of which type."""
    import onnx

    kinds: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            kinds[kind] = kinds.get(kind, 0) + 1
    return {"weights": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))}


def _open(text: str, _: Path) -> Artefact:
    from repconv.sources.source import open_source

    from ..artefacts.artefact import artefact_of

    return artefact_of(open_source(text))


def _look(target: Target) -> tuple[Diagnosis, ...]:
    providers = tuple(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
    use = "runs ONNX files and quantises them"
    return (Diagnosis(name=target.title, works=True, version=onnxruntime.__version__, devices=providers, said=use),)


_PROVIDERS = {"onnxruntime": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}
"""On a GPU, by backend."""


def _problem(_: Target, backend: str, device: str) -> str | None:
    wanted = "CPUExecutionProvider" if device == "cpu" else _PROVIDERS[backend]
    if wanted in onnxruntime.get_available_providers():
        return None
    return f"this onnxruntime has no {wanted}; pip install onnxruntime-gpu, on a machine with an NVIDIA GPU"


def _load(backend: str, job: Job, how: How) -> Loaded:
    """An ONNX file in onnxruntime: on the CPU, or on a GPU by its CUDA or TensorRT provider."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if how.threads is not None:
        options.intra_op_num_threads = how.threads
    # Or its threads would spin on, into the turn of another backend.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if how.device == "cuda":
        # Libraries of CUDA from PyPI are not where the loader looks; since 1.21.
        getattr(onnxruntime, "preload_dlls", nothing)()
        wanted = _PROVIDERS[backend]
        tensorrt = wanted.startswith("Tensorrt")
        graphs = {"trt_cuda_graph_enable" if tensorrt else "enable_cuda_graph": how.cuda_graphs}
        more = {"trt_fp16_enable": job.precision == "fp16"} if tensorrt else {"use_tf32": 0}
        providers: list[object] = [(wanted, {**graphs, **more})]
    else:
        wanted, providers = "CPUExecutionProvider", ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(job.file), options, providers=providers)
    if wanted not in session.get_providers():
        # It falls back to the CPU without a word.
        raise RuntimeError(f"onnxruntime could not use {wanted}; it offers {', '.join(session.get_providers())}")
    declared = session.get_inputs()[0]
    given = np.load(job.input)
    if declared.type == "tensor(float16)":
        given = given.astype(np.float16)
    feed = {declared.name: given}
    observed = {"provider": wanted, "threads": str(how.threads or "its own choice")}

    def call() -> object:
        return session.run(None, feed)

    if how.device != "cuda" or how.transfers:
        return Loaded(call=call, wait=nothing, outputs=lambda: list(session.run(None, feed)), observed=observed)
    return _on_gpu(session, declared.name, given, observed)


def _on_gpu(session: Any, name: str, given: Array, observed: dict[str, str]) -> Loaded:  # noqa: ANN401  # no types
    """With input and outputs that stay on the GPU."""
    binding = session.io_binding()
    placed = onnxruntime.OrtValue.ortvalue_from_numpy(given, "cuda", 0)
    binding.bind_ortvalue_input(name, placed)
    for output in session.get_outputs():
        # Static shapes: the same memory every time, as a recorded graph needs it.
        shape, kind = output.shape, {"tensor(float16)": np.float16}.get(output.type, np.float32)
        room = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cuda", 0)
        binding.bind_ortvalue_output(output.name, room)

    def call() -> None:
        session.run_with_iobinding(binding)

    def outputs() -> list[Array]:
        call()
        binding.synchronize_outputs()
        return list(binding.copy_outputs_to_cpu())

    return Loaded(call=call, wait=binding.synchronize_outputs, outputs=outputs, observed=observed)


RUNTIME = Runtime(build=build, open=_open, look=_look, load=_load, problem=_problem)

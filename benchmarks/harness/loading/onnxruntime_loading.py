"""ONNX files in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from repconv.export.artefacts.loaded import Array, How, Job, Loaded, nothing


def load_onnxruntime(job: Job, how: How, *, tensorrt: bool) -> Loaded:
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
        graphs = {"trt_cuda_graph_enable" if tensorrt else "enable_cuda_graph": how.cuda_graphs}
        wanted = "TensorrtExecutionProvider" if tensorrt else "CUDAExecutionProvider"
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
        return Loaded(call, nothing, lambda: list(session.run(None, feed)), observed)
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

    return Loaded(call, binding.synchronize_outputs, outputs, observed)

"""IR in OpenVINO."""

from __future__ import annotations

import numpy as np

from repconv.export.artefacts.loaded import Array, How, Job, Loaded, nothing
from repconv.export.runtimes.openvino import HINTS, compiled_network, import_openvino


def load_openvino(job: Job, how: How) -> Loaded:
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
    return Loaded(request.infer, nothing, outputs, {**observed, "threads": threads})

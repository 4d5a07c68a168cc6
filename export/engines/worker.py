"""Builds one engine with TensorRT or TensorRT-RTX, in a process of its own: `python -m ... FOLDER`.

Their libraries take one logger a process, may crash, and may be installed without what they need to run; the process
that asked sees all of that as an answer. Imports nothing but the standard library and the module asked for.

What the builders write depends on where in memory things are: with an open batch TensorRT-RTX 1.7 numbers a tensor of
its own in one of two ways, from the same model. So it builds at addresses that are the same in every run.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MISSING, UNUSABLE, FAILED = "missing", "unusable", "failed"
"""Kinds of errors: the module cannot be imported; it can, but no builder can be made; it could not build this."""

REQUEST, RESULT, MODEL, ENGINE, TIMING = "request.json", "result.json", "model.onnx", "engine", "timing"
"""Files in the folder. Their names are short and always the same, as longer ones would move what is in memory."""


class Problem(Exception):  # noqa: N818  # not an error of this package: it becomes an answer
    """What went wrong, and of which kind."""

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind


_PERSONALITY_ASKED, _ADDR_NO_RANDOMIZE = 0xFFFFFFFF, 0x0040000
"""Of Linux's <sys/personality.h>."""
AS_THEY_ARE = "as-they-are"
"""Behind the folder: build without regard to addresses, to measure what that gives."""
_AGAIN = "again"


def main() -> None:
    """Read the folder's request (JSON), do it, write the result (JSON)."""
    folder, *more = sys.argv[1:]
    regarded = AS_THEY_ARE not in more
    fixed = regarded and addresses_fixed(again=_AGAIN in more)
    os.chdir(folder)
    if not regarded:
        answer(fixed)
        return
    # A thread's memory is its own: where things are in it does not depend on what the interpreter holds, such as the
    # environment.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(answer, fixed).result()


def answer(fixed: bool) -> None:
    """Do what is asked and write what came of it."""
    asked = json.loads(Path(REQUEST).read_text())
    try:
        told = probe(asked["module"]) if asked.get("probe") else {**build(asked), "addresses_fixed": fixed}
    except Problem as problem:
        told = {"error": problem.kind, "said": str(problem)}
    Path(RESULT).write_text(json.dumps(told))


def addresses_fixed(*, again: bool) -> bool:
    """Whether memory is where it is in every run; if it is not, the process starts anew so, where that is possible.

    It is not on other systems than Linux, and in sandboxes that do not allow it.
    """
    if not sys.platform.startswith("linux"):
        return False
    personality = ctypes.CDLL(None).personality
    personality.argtypes = [ctypes.c_ulong]
    now = personality(_PERSONALITY_ASKED)
    if again or now == -1 or now & _ADDR_NO_RANDOMIZE:
        return now != -1 and bool(now & _ADDR_NO_RANDOMIZE)
    if personality(now | _ADDR_NO_RANDOMIZE) != -1:
        # Addresses are drawn as a program starts, so this very one starts once more.
        os.execv(sys.executable, [*sys.orig_argv, _AGAIN])  # noqa: S606
    return False


def load(module: str) -> Any:  # noqa: ANN401  # no types
    """The module, of which a library may be missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Problem(MISSING, str(error)) from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise Problem(UNUSABLE, f"its libraries cannot be loaded: {error}") from error


def make_logger(trt: Any) -> Any:  # noqa: ANN401
    """A logger that keeps every line; the builder writes the layers of an engine there."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what is logged."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401
            """Keep a message."""
            self.lines += msg.splitlines()
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg)

    return Logger()


def make_builder(trt: Any, logger: Any) -> Any:  # noqa: ANN401
    """A builder; TensorRT needs a GPU and its driver for one."""
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        raise Problem(UNUSABLE, "; ".join(logger.errors[-2:]) or f"no builder can be made: {error}") from error
    if builder is None:
        raise Problem(UNUSABLE, "; ".join(logger.errors[-2:]) or "no builder can be made")
    return builder


def probe(module: str) -> dict[str, object]:
    """Whether the module works here, and what it builds for."""
    trt = load(module)
    make_builder(trt, make_logger(trt))
    return {"version": trt.__version__, "capabilities": capabilities(trt)}


def capabilities(trt: Any) -> list[str]:  # noqa: ANN401
    """What an ahead-of-time engine can be built for; empty for TensorRT, which builds for the GPU it runs on."""
    known = vars(trt).get("ComputeCapability")
    return [] if known is None else [name for name in known.__members__ if name.startswith("SM")]


def build(asked: dict[str, Any]) -> dict[str, object]:
    """Build an engine and write it; the answer holds its layers and inputs and outputs."""
    trt = load(asked["module"])
    logger = make_logger(trt)
    builder = make_builder(trt, logger)
    typed = trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(MODEL):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = [f"{e.node_operator()} {e.node_name()}: {e.desc().strip()}" for e in errors]
        raise Problem(FAILED, "; ".join(dict.fromkeys(said)) or "the parser refuses the model")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if "TF32" in trt.BuilderFlag.__members__:
        # Ten bits of mantissa are not float32.
        config.clear_flag(trt.BuilderFlag.TF32)
    if asked["capabilities"]:
        known = capabilities(trt)
        unknown = [name for name in asked["capabilities"] if name not in known]
        if unknown:
            raise Problem(FAILED, f"it does not build for {', '.join(unknown)}, only for {', '.join(known)}")
        config.num_compute_capabilities = len(asked["capabilities"])
        for index, name in enumerate(asked["capabilities"]):
            config.set_compute_capability(trt.ComputeCapability.__members__[name], index)
    for name, (least, usual, most) in asked["profile"].items():
        profile = builder.create_optimization_profile()
        profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    cache = _timing_cache(config, asked["timing_cache"])
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise Problem(FAILED, "; ".join(dict.fromkeys(logger.errors[-3:])) or "the builder returned nothing")
    Path(ENGINE).write_bytes(bytes(engine))
    if cache is not None:
        Path(TIMING).write_bytes(bytes(config.get_timing_cache().serialize()))
    inspected = None if asked["capabilities"] else _inspected(trt, logger, engine)
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return {
        "version": trt.__version__,
        "inspected": inspected,
        "layers": [line for line in logger.lines if line.startswith("Name: ") and "LayerType: " in line],
        "tensors": [{"name": t.name, "dtype": t.dtype.name, "shape": list(t.shape)} for t in tensors],
        "timing_cache": cache,
    }


def _timing_cache(config: Any, path: str | None) -> str | None:  # noqa: ANN401
    """Use a timing cache; says whether there was one."""
    if path is None:
        return None
    known = Path(path).read_bytes() if Path(path).is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        raise Problem(FAILED, f"{path} is no timing cache of this version and GPU; delete it")
    return "reused" if known else "new"


def _inspected(trt: Any, logger: Any, engine: Any) -> str | None:  # noqa: ANN401
    """What the engine itself says of its layers, as JSON; it takes a GPU to ask."""
    loaded = trt.Runtime(logger).deserialize_cuda_engine(engine)
    if loaded is None:
        return None
    inspector = loaded.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


if __name__ == "__main__":
    main()

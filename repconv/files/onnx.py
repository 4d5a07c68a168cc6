"""ONNX files and models in memory: read, written and run, whatever their size."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from math import prod
from pathlib import Path
from typing import Any

import onnx

from ..errors import SourceError, first_line
from ..limits import LONGEST_LOOP_S, LONGEST_RUN_S, MOST_CALLED_NODES, TooLongError, too_long
from .edited import bodies_of, copy_of
from .foreign.beside import BesideError, put_weights
from .held import temporary_folder

_NO_WEIGHTS = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
_LARGE = 1024
"""Initialisers with more elements are only shapes to checks and shape inference, which so work above 2 GB."""
_LARGEST_MESSAGE = 2**31 - 2**24
"""Bytes of weights that fit one message, with room for the rest of it."""

_LOOKED_S = 0.2
"""How often a run is looked at."""

LARGE = 2**22
"""Bytes of weights whose memory is worth handing back."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in an `.onnx` file, with weights it keeps in other files.

    Raises:
        SourceError: not a readable, valid ONNX model.
    """
    proto = parsed(path)
    said = complaint(proto)
    if said:
        raise SourceError(f"{path}: not a valid ONNX model: {said}")
    return proto


def parsed(path: Path) -> onnx.ModelProto:
    """As `read_onnx`, of a model that may not be valid.

    Raises:
        SourceError: not a readable ONNX model.
    """
    if not path.is_file():
        raise SourceError(f"{path}: {'is a directory' if path.is_dir() else 'no such file'}; name an ONNX model")
    try:
        proto: onnx.ModelProto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf, onnx and the file system each raise their own
        raise SourceError(
            f"{path}: not a readable ONNX model, or one that is damaged or cut short ({first_line(error)})"
        ) from error
    try:
        put_weights(proto, path)
    except BesideError as problem:
        raise SourceError(f"{path}: {problem}") from problem
    return proto


def complaint(model: onnx.ModelProto) -> str:
    """What makes a model no valid one; "" where nothing does.

    ONNX's checker looks at it without the bytes of large weights, which may be more than it can take, and with a shape
    for outputs that declare none, which runtimes do not need.
    """
    if not model.graph.node:
        return "it has no nodes"
    if not model.graph.output:
        return "it has no outputs"
    name = next(_no_text(model), None)
    if name is not None:
        return f"its {name[0]} is {name[1]!r}, which is no UTF-8 text"
    types = set(onnx.TensorProto.DataType.values())
    declared = [(v.name, v.type.tensor_type.elem_type) for v in (*model.graph.input, *model.graph.output)]
    odd = [(n, kind) for n, kind in (*declared, *((t.name, t.data_type) for t in model.graph.initializer))
           if kind not in types]  # fmt: skip
    if odd:
        return f"{odd[0][0]} is of element type {odd[0][1]}, which onnx {onnx.__version__} does not know"
    light = without_weights(model)
    for value in light.graph.output:
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(light)
    except Exception as error:  # noqa: BLE001  # protobuf and onnx each raise their own
        return first_line(error)
    return _calls_without_measure(model)


def _calls_without_measure(model: onnx.ModelProto) -> str:
    """What is said where calls of functions that call functions are too many; "" where they are not."""
    calls = {(f.domain, f.name): _operations(f) for f in model.functions}
    under_way = _operations(model.graph)
    found = 0
    while under_way := Counter({key: times for key, times in under_way.items() if key in calls}):
        found += sum(times * calls[key].total() for key, times in under_way.items())
        if found > MOST_CALLED_NODES:
            return f"its functions call one another so often that it has more than {MOST_CALLED_NODES:,} nodes"
        deeper: Counter[tuple[str, str]] = Counter()
        for key, times in under_way.items():
            deeper.update({called: times * count for called, count in calls[key].items()})
        under_way = deeper
    return ""


def _operations(body: onnx.GraphProto | onnx.FunctionProto) -> Counter[tuple[str, str]]:
    """How often it has a node of each domain and operation, those of its subgraphs included."""
    return Counter((node.domain, node.op_type) for inner in bodies_of(body) for node in inner.node)


def kind_of(elem_type: int) -> str:
    """What an element type is called: as numpy does, or by its number where onnx does not know it."""
    try:
        return (
            str(onnx.helper.tensor_dtype_to_np_dtype(elem_type)) if elem_type != onnx.TensorProto.STRING else "string"
        )
    except KeyError:
        return f"of element type {elem_type}"


def _no_text(message: Any, at: str = "") -> Iterator[tuple[str, bytes]]:  # noqa: ANN401  # protobuf has no types
    """Fields of a message that are to be text and are other bytes, and what they are of; numbers are not looked at."""
    for field, value in message.ListFields():
        if field.message_type is None:
            parts = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
            if field.type == field.TYPE_STRING:
                yield from ((f"{at} {field.name}".strip(), part) for part in parts if isinstance(part, bytes))
        elif isinstance(message, onnx.TensorProto):
            continue
        else:
            parts = value if isinstance(value, Sequence) or not hasattr(value, "ListFields") else (value,)
            for part in parts:
                yield from _no_text(part, field.name)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large initialisers as inputs: all there is to check and infer but their bytes."""
    light = onnx.ModelProto()
    light.ir_version = max(model.ir_version, 4)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)
    light.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    inputs = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _LARGE:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def longest_run(model: onnx.ModelProto) -> float:
    """How many seconds one call of it may take: less with a Loop anywhere, in a function or in a branch of an If."""
    loops = any(node.op_type == "Loop" for body in bodies_of(model) for node in body.node)
    return LONGEST_LOOP_S if loops else LONGEST_RUN_S


def run_session(
    session: Any,  # noqa: ANN401  # onnxruntime has no types
    names: Sequence[str] | None,
    feeds: Mapping[str, Any],
    seconds: float = LONGEST_RUN_S,
) -> list[Any]:
    """What a session gives, the named outputs or all.

    It runs in a thread of its own, which is waited for: signals (Ctrl-C) arrive between operations, not after the last.

    Raises:
        TooLongError: it took longer than `seconds`.
        Exception: whatever else onnxruntime raises.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(session.run, None if names is None else list(names), dict(feeds), options)
        until, in_time = time.monotonic() + seconds, False
        try:
            # In pieces: a signal may reach another thread, and does not end this one's wait then.
            while not in_time and (left := until - time.monotonic()) > 0:
                in_time = bool(wait([running], min(left, _LOOKED_S)).done)
        finally:
            options.terminate = True
        try:
            found: list[Any] = running.result()
        except Exception as error:
            if not in_time:
                raise TooLongError(too_long(seconds)) from error
            raise
    return found


def session_of(model: Path | bytes, text: str, *, as_written: bool = False, exact_integers: bool = False) -> Any:  # noqa: ANN401  # onnxruntime has no types
    """An onnxruntime session on the CPU for a file or its bytes, called `text` in errors.

    With `as_written` the operations are those of the file: else onnxruntime makes a convolution between
    DequantizeLinear and QuantizeLinear one of integers, and rounds its float weights to 8 bits for it. Weights are not
    laid out anew for kernels, either, which takes as much memory again.
    With `exact_integers` products of 8 bits are summed without saturating: on x86 without VNNI onnxruntime's usual
    kernels add two of them in 16 bits, and what does not fit is cut off.

    Raises:
        SourceError: onnxruntime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if exact_integers:
        options.add_session_config_entry("session.x64quantprecision", "1")
    source = str(model) if isinstance(model, Path) else _unshared(model) if exact_integers else model
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a type a failure
        first = next(iter(str(error).splitlines()), "")
        raise SourceError(f"onnxruntime {onnxruntime.__version__} cannot load {text}: {first}") from error
    if (model.stat().st_size if isinstance(model, Path) else len(model)) > LARGE:
        return_freed()
    return session


def _unshared(content: bytes) -> bytes:
    """A model with a DequantizeLinear, and stored numbers, for each node that reads such; it computes the same.

    onnxruntime (1.32) makes weights of 8 bits unsigned for its exact kernels, once for each node that reads them, and
    loads no model in which one is read twice.
    """
    model = onnx.ModelProto.FromString(content)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    makers: dict[str, onnx.NodeProto] = {}
    read: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and all(name in held for name in node.input):
            makers[node.output[0]] = node
        for position, name in enumerate(node.input):
            if name in makers and name in read:
                own = onnx.NodeProto()
                own.CopyFrom(makers[name])
                suffix = f".{len(nodes)}.{position}.unshared"
                own.name, own.output[0] = f"{own.name}{suffix}", f"{name}{suffix}"
                for place, stored in enumerate(own.input):
                    tensor = onnx.TensorProto()
                    tensor.CopyFrom(held[stored])
                    tensor.name = own.input[place] = f"{stored}{suffix}"
                    model.graph.initializer.append(tensor)
                node.input[position] = own.output[0]
                nodes.append(own)
            read.add(name)
        nodes.append(node)
    if len(nodes) == len(model.graph.node):
        return content
    copied = onnx.GraphProto(node=nodes)
    del model.graph.node[:]
    model.graph.node.extend(copied.node)
    found: bytes = model.SerializeToString()
    return found


def return_freed() -> None:
    """Have glibc hand freed memory back to the system.

    Loading and optimising, onnxruntime held three times the weights of a RepVGG of 29 million parameters for a moment;
    all of it freed, and none returned.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def model_session(model: onnx.ModelProto, text: str, *, as_written: bool = False, exact_integers: bool = False) -> Any:  # noqa: ANN401  # onnxruntime has no types
    """An onnxruntime session for a model in memory, of any size; arguments and errors as `session_of`.

    A session keeps the bytes that it was made of as long as it lives, and copies weights of a message while it loads;
    of weights in a file of their own neither.
    """
    if _weighs(model) <= LARGE or (exact_integers and not is_large(model)):
        return session_of(model.SerializeToString(), text, as_written=as_written, exact_integers=exact_integers)
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        save_large(model, path)
        return_freed()
        session = session_of(path, text, as_written=as_written, exact_integers=exact_integers)
    return_freed()
    return session


def statistics_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """The inputs of a batch normalisation that are statistics: nobody trains those, and PyTorch does not count them."""
    return tuple(node.input[3:5]) if node.op_type == "BatchNormalization" else ()


def parameters(model: onnx.ModelProto) -> int:
    """Numbers in initialisers that PyTorch calls parameters: no running statistics, no shapes and indices."""
    statistics = {name for node in model.graph.node for name in statistics_of(node)}
    return sum(
        prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name not in statistics and tensor.data_type not in _NO_WEIGHTS
    )


def is_large(model: onnx.ModelProto) -> bool:
    """Whether a model is too large for one protobuf message, so that its weights need a file of their own."""
    return _weighs(model) > _LARGEST_MESSAGE


def _weighs(model: onnx.ModelProto) -> int:
    """Bytes of its weights."""
    return sum(map(stored_bytes, model.graph.initializer))


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's numbers, at most; unlike `ByteSize` without writing them."""
    try:
        width = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError:  # a type that this onnx does not know
        width = 8
    return int(prod(tensor.dims)) * width


def save_large(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to `path` and its weights to `path` with `.data` behind it."""
    copied = copy_of(model)  # saving so moves the weights out of the message
    onnx.save(copied, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)

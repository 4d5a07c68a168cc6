"""What a checkpoint says of itself is believed only where it can be true, and what is no weight is said by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from repconv import CheckpointError, create_model, save
from repconv.sources.checkpoint import digest, from_content
from repconv.sources.networks import of_weights

Content = dict[str, Any]
WEIGHT = "stem.branches.3x3.conv.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Content:
    path = tmp_path_factory.mktemp("whole") / "m.pt"
    torch.manual_seed(0)
    save(create_model("irep_resnet18", width=4, blocks=(1,)).eval(), path, input_shape=(3, 16, 16), metrics={"a": 1})
    return torch.load(path, weights_only=True)


def read(content: Content) -> None:
    """As from a file whose digest fits."""
    description = {key: value for key, value in content.items() if key not in ("digest", "state")}
    from_content({**content, "digest": digest(description, content["state"])}, {}, "m.pt")


def changed(content: Content, place: tuple[str, ...], value: object) -> Content:
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


CLAIMS: dict[tuple[str, ...], list[tuple[object, str]]] = {
    ("input_shape",): [
        ([0, 0, 0], r"input_shape\[0\] is 0"), ([3, -4, 4], r"input_shape\[1\] is -4"), ("abc", "'abc', expected"),
        (["3", "4", "4"], r"\[0\] is '3'"), ([3, 4.5, 4], r"\[1\] is 4.5"), ([3, 10**13, 4], "10000000000000"),
        ([3, 2**18, 2**18], "at most 268,435,456 numbers"), ([3] * 6, "has 6, expected 1 to 5"),
        ([3, 16, True], r"\[2\] is True"),
    ],
    ("model", "arguments", "width"): [
        (2**40, "arguments.width is"), (4096, "more weights than the file's"), (-1, "at least 1"), (None, "None"),
    ],
    ("model", "arguments", "blocks"): [([10**6], r"blocks\[0\] is 1000000"), ([4096] * 8, "at most 10 stages")],
    ("model", "arguments", "num_classes"): [(2**50, "num_classes")],
    ("model",): [(3, "model is 3"), ({"name": 3, "arguments": {}}, "name is 3"), ({"name": "x"}, "is missing")],
    ("dtype",): [("float9", "float9"), ("int64", "int64"), ("Tensor", "one of float16"), (3, "dtype is 3")],
    ("class_names",): [(3, "a list"), ({"a": 1}, "a list"), ([1, 2], r"class_names\[0\] is 1"), ("ab", "a list")],
    ("metrics",): [(["a"], "names"), ({"a": "b"}, "metrics.a is 'b'"), ({"a": None}, "a number"), ({3: 4}, "names")],
    ("normalization",): [
        (3, "an object"), ({"mean": ["a"], "std": [1]}, r"mean\[0\] is 'a'"), ({}, "mean is missing"),
        ({"mean": [1], "std": [0]}, r"std\[0\] is 0, .* above 0"), ({"mean": [1], "std": [1, 1]}, "1 means"),
    ],
    ("folded",): [("stages", "a list"), ([["a"]], r"folded\[0\]"), ({"a": 1}, "a list")],
    ("blocks",): [(3, "blocks is 3"), ({"a": {}}, "blocks.a.fixed is missing"), ({"stem": 3}, "blocks.stem is 3")],
    ("blocks", "stem", "eps"): [("a", "eps is 'a'"), (-1.0, "a number above 0")],
    ("version",): [(True, "version is True"), (1.5, "version is 1.5")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "words"), [(place, *row) for place, rows in CLAIMS.items() for row in rows], ids=repr
)
def test_what_a_description_claims_is_checked(place, value, words, whole):
    with pytest.raises(CheckpointError, match=f"m.pt: .*{words}"):
        read(changed(whole, place, value))


def test_the_description_as_it_was_is_read(whole):
    read(whole)


KINDS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "complex": (lambda w: w.to(torch.complex64), "complex64"),
    "fp8": (lambda w: w.to(torch.float8_e4m3fnuz), "float8_e4m3fnuz"),
    "int8": (lambda w: w.to(torch.int8), "int8"),
    "sparse": (lambda w: w.to_sparse(), "sparse_coo"),
    "compressed": (lambda w: w[0, 0].to_sparse_csr(), "sparse_csr"),
    "meta": (lambda w: w.to("meta"), "without its numbers"),
    "conjugate": (lambda w: w.to(torch.complex64).conj(), "conjugates"),
    "negated": (torch._neg_view, "negates"),
    "expanded": (lambda _: torch.zeros(1).expand(2**40), "repeats its numbers up to 4,398,046,511,104 bytes"),
    "quantised": (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.quint8), "quantised"),
    "nested": (lambda w: torch.nested.nested_tensor([w[0], w[0, :1]]), "nested"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_no_weight_is_said(kind, whole, tmp_path):
    make, words = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that some of these kinds are in beta
        state = {**whole["state"], WEIGHT: make(whole["state"][WEIGHT])}
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=f"{WEIGHT} is .*{words}"):
            of_weights(tmp_path / "m.pt", "irep_resnet18", None)


@pytest.mark.parametrize("kind", ["complex", "int8", "bool"])
def test_kinds_that_digest_are_said_in_a_checkpoint(kind, whole):
    make, words = {**KINDS, "bool": (lambda w: w > 0, "bool")}[kind]
    with pytest.raises(CheckpointError, match=f"m.pt: {WEIGHT} is {words}"):
        read({**whole, "state": {**whole["state"], WEIGHT: make(whole["state"][WEIGHT])}})


@pytest.mark.parametrize("kind", ["sparse", "meta", "negated", "expanded", "nested"])
def test_kinds_without_bytes_are_said_before_their_digest(kind, whole):
    make, words = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {**whole["state"], WEIGHT: make(whole["state"][WEIGHT])}
    with pytest.raises(CheckpointError, match=f"m.pt: {WEIGHT} is .*{words}"):
        from_content({**whole, "state": state}, {}, "m.pt")

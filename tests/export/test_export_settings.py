"""What may be asked of an export, and what is refused in words."""

from __future__ import annotations

import pytest

from repconv.errors import SourceError
from repconv.export import BuildSettings, Preprocessing, Span
from repconv.export.proof.tolerances import tolerance_for
from repconv.export.settings import check_capabilities, parse_image


@pytest.mark.parametrize(("text", "span"), [("8", (8, 8, 8)), ("1:8:32", (1, 8, 32)), (" 2:2:2 ", (2, 2, 2))])
def test_sizes_are_read_and_written_alike(text: str, span: tuple[int, int, int]) -> None:
    found = Span.parse(text)
    assert (found.least, found.usual, found.most) == span
    assert Span.parse(str(found)) == found
    assert found.fixed == (span[0] == span[2])


@pytest.mark.parametrize("text", ["32:8:1", "0", "-1", "1:2", "8:1:32", "1:64:32", "a", "", "1:2:3:4", "1.5", "9" * 12])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(SourceError, match=r"MIN:OPT:MAX"):
        Span.parse(text)


def test_image_sizes() -> None:
    assert parse_image("224,192") == (Span.of(224), Span.of(192)) == parse_image("224x192")
    assert parse_image("1:2:3,4") == (Span(1, 2, 3), Span.of(4))
    assert parse_image("3x224x192") == parse_image("3,224,192") == (Span.of(3), Span.of(224), Span.of(192))
    for text in ("", "1,2,3,4,5,6", "3:2:1,4", "a,b"):
        with pytest.raises(SourceError):
            parse_image(text)


def test_capabilities() -> None:
    assert check_capabilities(["8.6", "sm_89", "SM120", "86"]) == ("SM86", "SM89", "SM120")
    for bad in ([], ["ampere"], ["8.66"]):
        with pytest.raises(SourceError, match="compute capability"):
            check_capabilities(bad)


REFUSED = {
    "precision": ({"precision": "fp8"}, "expected fp32, fp16, bf16, int8"),
    "io": ({"precision": "int8", "fp32_io": True}, "float32 anyway"),
    "bf16 opset": ({"precision": "bf16", "opset": 18}, "need ONNX opset 22"),
    "lost": ({"max_lost": 1.5}, "a share from 0 to 1"),
    "tolerance": ({"tolerance": 0.0}, "above 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_make_no_sense_are_refused(case: str) -> None:
    given, words = REFUSED[case]
    with pytest.raises(SourceError, match=words):
        BuildSettings(**given)


def test_preprocessing_takes_as_many_means_as_deviations() -> None:
    for mean, std in (((0.5,), (1.0, 1.0)), ((), ()), ((0.5,), (0.0,))):
        with pytest.raises(SourceError):
            Preprocessing(mean, std)


def test_every_precision_has_a_tolerance_with_its_reason() -> None:
    limits = {p: tolerance_for(p) for p in ("fp32", "fp16", "bf16", "int8")}
    assert limits["fp32"].limit < limits["fp16"].limit < limits["bf16"].limit < limits["int8"].limit
    assert all(t.reason for t in limits.values())
    assert tolerance_for("int8", 0.5).limit == 0.5

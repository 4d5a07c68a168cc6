"""Sizes that a program describes are weighed before anything works them out."""

import json
import zipfile

import pytest
import torch
from torch import nn

from repconv import SourceError
from repconv.files.foreign.programs import open_program
from repconv.files.foreign.sizes import complaint_of_nodes, complaint_of_text
from repconv.limits import LARGEST_SIZE_BITS, LONGEST_SIZE

S, T = "Symbol('s0', positive=True, integer=True)", "Symbol('s1', positive=True, integer=True)"
POWER = "whose exponent is no whole number"


@pytest.mark.parametrize("text", [
    S, f"Mul(Integer(8), {S})", f"Add({S}, Integer(-2))", f"Pow({S}, Integer(2))", f"Pow({S}, Rational(1, 2))",
    f"Mul(Integer(6), Max(Integer(1), Add({S}, Integer(-2))), Pow(Add({T}, Integer(1)), Integer(2)))",
    f"FloorDiv(Add({S}, Integer(-1)), Integer(2))", f"Eq(Mod({S}, Integer(2)), Integer(0))", "s0**2 + 1", "2**62",
    f"Pow({S}, Integer(-1))", "L['x'].size()[0] >= 4", "L['x'].ndim == 4 and L['x'].stride()[1] % 2 == 0",
])  # fmt: skip
def test_sizes_as_torch_writes_them_are_worked_out(text):
    assert complaint_of_text(text) == ""


@pytest.mark.parametrize(("text", "words"), [
    ("2**(2**40)", POWER), ("s0**s0**99", POWER), (f"{S}**{S}**99", POWER), ("2**2**2**2**2**9", POWER),
    ("Pow(Integer(2), Pow(Integer(2), Integer(40)))", POWER), (f"Pow({S}, {S})", POWER),
    ("2**1099511627776", "2,199,023,255,552 bits"), ("Pow(Integer(2), Integer(-1099511627776))", "bits"),
    ("((2**999)**999)**999", "bits"), (f"Pow({S}, Integer(99))", "6,336 bits"),
    ("Pow(Integer(9), Rational(9999, 2))", "bits"),
    ("L['x'].size()[0] ** 99999 > 2", "bits"), ("2**" + "9" * 3000, "more than 10^30 bits"),
    ("*".join(["s0"] * 100), "bits"), (f"Mul({','.join(['s0'] * 100)})", "6,400 bits"),
    (f"Mul({','.join(['Add(s0, s1, s2, s3)'] * 7)})", "more than 4,096 terms"),
    ("Pow(Add(s0, s1, 1, 2), Integer(9))", "more than 4,096 terms"),
    (f"Max({','.join(f's{i}' for i in range(65))})", "largest or smallest of 65"),
    ("Min(" * 33 + "s0" + ", s1)" * 33, "of 66"),
    ("(" * 300 + "s0" + ")" * 300, "no arithmetic"), ("s0 s1", "no arithmetic"), ("", "no arithmetic"),
    ("lambda: 1", "no arithmetic"), ("9" * 5000, "no arithmetic"), ("1+" * LONGEST_SIZE + "1", "letters"),
    ("[s0][0] ** 2 ** 99", POWER), ("-" * 9000 + "1", "no arithmetic"),
])  # fmt: skip
def test_what_would_not_end_is_refused(text, words):
    assert words in complaint_of_text(text)


def call(name: str, output: str, *given: object) -> dict:
    inputs = [
        {"name": "", "arg": {"as_sym_int": {"as_name": g}} if isinstance(g, str) else {"as_int": g}} for g in given
    ]
    return {"target": f"_operator.{name}", "inputs": inputs, "outputs": [{"as_sym_int": {"as_name": output}}]}


def test_sizes_that_nodes_work_out_are_weighed_in_turn():
    squares = [call("mul", f"n{i + 1}", f"n{i}", f"n{i}") for i in range(7)]
    assert complaint_of_nodes(squares[:6]) == ""
    assert f"8,192 bits, at most {LARGEST_SIZE_BITS:,}" in complaint_of_nodes(squares)
    assert POWER in complaint_of_nodes([call("pow", "n1", 2, "n0")])
    assert "bits" in complaint_of_nodes([call("pow", "n1", 2, 2**40)])
    assert "bits" in complaint_of_nodes([call("pow", f"n{i + 1}", f"n{i}", 8) for i in range(3)])
    assert (
        complaint_of_nodes([call("pow", "n1", "n0", 2), call("add", "n2", "n1", -1), call("floordiv", "n3", "n2", 2)])
        == ""
    )
    halves = [call(("mul", "floordiv")[i % 2], f"n{i + 1}", f"n{i}", 2) for i in range(60)]
    assert complaint_of_nodes(halves) == ""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A program with open sizes, by its members."""
    sizes = {0: torch.export.Dim("n", min=1, max=64), 2: torch.export.Dim("h", min=4, max=64)}
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    torch.export.save(torch.export.export(network, (torch.randn(2, 3, 8, 8),), dynamic_shapes=(sizes,)), path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("where", ["size", "guard", "node"])
def test_a_program_with_such_a_size_is_refused_in_words(where, parts, tmp_path):
    name = next(name for name in parts if name.endswith("models/model.json"))
    known = json.loads(parts[name])
    if where == "guard":
        known["guards_code"] = ["L['input'].size()[0] == 2**(2**40)"]
    elif where == "node":
        known["graph_module"]["graph"]["nodes"].insert(0, call("pow", "huge", 2, 2**40))
    text = json.dumps(known)
    if where == "size":
        old = next(part for part in text.split('"') if part.startswith("Mul(Integer("))
        text = text.replace(old, "s0**s0**99")
    for content, refused in ((parts[name], False), (text.encode(), True)):
        with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
            for part, held in {**parts, name: content}.items():
                archive.writestr(part, held)
        if not refused:
            assert open_program(tmp_path / "m.pt2").graph is not None
            continue
        with pytest.raises(SourceError, match=rf"m\.pt2: it (has a {where}|computes with sizes).*(bits|whole number)"):
            open_program(tmp_path / "m.pt2")

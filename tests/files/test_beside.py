"""Weights beside an ONNX model: read where they are the model's own, in a hub's cache too, and nowhere else."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repconv import FusionError, SourceError, create_model, load, save
from repconv.files.foreign import beside
from repconv.files.onnx import parsed, read_onnx
from repconv.graph import fuse_onnx
from repconv.sources.source import open_source

WEIGHT = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)


def model(location: str = "model.onnx_data", **said: str) -> onnx.ModelProto:
    """A convolution with its weight in another file."""
    weight = numpy_helper.from_array(WEIGHT, "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **said}.items():
        weight.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8]) for n, c in (("x", 3), ("y", 8)))
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def cache(folder: Path, kind: str = "models", below: str = "onnx") -> Path:
    """A hub's cache as its client writes it; the model in its snapshot."""
    repository = folder / f"{kind}--someone--net"
    snapshot = repository / "snapshots" / "0123abcd" / below
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    contents = {"model.onnx": model().SerializeToString(), "model.onnx_data": WEIGHT.tobytes()}
    for i, (name, content) in enumerate(contents.items()):
        (repository / "blobs" / f"{i:064x}").write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(repository / "blobs" / f"{i:064x}", snapshot))
    return snapshot / "model.onnx"


def weight_of(proto: onnx.ModelProto) -> np.ndarray:
    return numpy_helper.to_array(proto.graph.initializer[0])


@pytest.mark.parametrize("below", ["", "onnx", "onnx/deeper"])
@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_hubs_cache_is_read(kind, below, tmp_path):
    path = cache(tmp_path, kind, below)
    np.testing.assert_array_equal(weight_of(open_source(path).held), WEIGHT)
    np.testing.assert_array_equal(weight_of(fuse_onnx(path)[0]), WEIGHT)


def test_a_cache_reached_by_a_link_and_named_relatively_is_read(tmp_path, monkeypatch):
    cache(tmp_path / "far")
    (tmp_path / "hub").symlink_to("far")
    monkeypatch.chdir(tmp_path / "hub" / "models--someone--net" / "snapshots" / "0123abcd" / "onnx")
    np.testing.assert_array_equal(weight_of(read_onnx(Path("model.onnx"))), WEIGHT)


@pytest.mark.parametrize("place", ["here", "below", "linked below", "linked folder", "offset", "two links"])
def test_weights_in_the_models_own_folder_are_read(place, tmp_path):
    content, location, said = WEIGHT.tobytes(), "w.bin", {}
    (tmp_path / "deep").mkdir()
    target = tmp_path / ("w.bin" if place in ("here", "offset") else "deep/kept.bin")
    if place == "below":
        location = "deep/kept.bin"
    elif place == "offset":
        content, said = b"12345678" + content + b"more", {"offset": "8", "length": str(len(content))}
    elif place == "linked folder":
        (tmp_path / "link").symlink_to("deep")
        location = "link/kept.bin"
    elif place == "two links":
        (tmp_path / "link").symlink_to("deep/kept.bin")
        (tmp_path / "w.bin").symlink_to("link")
    elif place == "linked below":
        (tmp_path / "w.bin").symlink_to("deep/kept.bin")
    target.write_bytes(content)
    (tmp_path / "m.onnx").write_bytes(model(location, **said).SerializeToString())
    np.testing.assert_array_equal(weight_of(read_onnx(tmp_path / "m.onnx")), WEIGHT)


def outside(folder: Path) -> Path:
    """Weights that are none of the model's."""
    (folder / "other").mkdir()
    (folder / "other" / "w.bin").write_bytes(WEIGHT.tobytes())
    return folder / "other" / "w.bin"


@pytest.mark.parametrize("name", [
    "absolute", "up", "up inside", "windows", "drive", "empty", "link out", "folder out", "relative link out", "circle",
    "to itself", "pipe", "device", "directory", "hard link", "missing", "other repository",
])  # fmt: skip
def test_nothing_else_is_read(name, tmp_path):
    secret, own = outside(tmp_path), tmp_path / "own"
    own.mkdir()
    location = {
        "absolute": str(secret), "up": "../other/w.bin", "up inside": "a/../../other/w.bin",
        "windows": "..\\other\\w.bin", "drive": "C:w.bin", "empty": "", "folder out": "link/w.bin",
    }.get(name, "w.bin")  # fmt: skip
    links = {
        "link out": ("w.bin", secret), "folder out": ("link", secret.parent),
        "relative link out": ("w.bin", "../other/w.bin"), "circle": ("w.bin", "v.bin"), "to itself": ("w.bin", "w.bin"),
        "device": ("w.bin", "/dev/zero"),
    }  # fmt: skip
    path = own / "m.onnx"
    if name in links:
        (own / links[name][0]).symlink_to(links[name][1])
    if name == "circle":
        (own / "v.bin").symlink_to("w.bin")
    elif name == "pipe":
        os.mkfifo(own / "w.bin")
    elif name == "directory":
        (own / "w.bin").mkdir()
    elif name == "hard link":
        os.link(secret, own / "w.bin")
    elif name == "other repository":
        path = cache(tmp_path).with_name("other.onnx")
        blobs = tmp_path / "models--someone--other" / "blobs"
        blobs.mkdir(parents=True)
        secret.rename(blobs / "0")
        (path.parent / "w.bin").symlink_to(os.path.relpath(blobs / "0", path.parent))
    path.write_bytes(model(location).SerializeToString())
    for read, error in ((read_onnx, SourceError), (fuse_onnx, FusionError)):
        with pytest.raises(error, match="external data") as found:
            read(path)
        assert str(path) in str(found.value)
        assert name == "missing" or f"cp -rL {path.parent} COPY" in str(found.value)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"offset": "4"}, "bytes 4 to 868 of 864; was it fetched whole"),
        ({"length": "860"}, "860 bytes for a tensor that takes 864"),
        ({"offset": "-4", "length": "864"}, "bytes -4 to 860 of 864"),
        ({"length": "-1"}, "bytes 0 to -1"),
        ({"offset": "one"}, "invalid literal"),
    ],
)
def test_too_little_and_odd_positions_are_words(said, words, tmp_path):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m.onnx").write_bytes(model("w.bin", **said).SerializeToString())
    with pytest.raises(SourceError, match=words):
        parsed(tmp_path / "m.onnx")


def test_a_link_whose_target_changes_after_it_was_looked_at_is_not_followed(tmp_path, monkeypatch):
    """Between the look and the reading, the file becomes a link out, and then the folder it is in."""
    secret = outside(tmp_path)
    checked = beside._without_links

    def swapped(what: Path):
        def change(folder, parts):
            what.rename(tmp_path / "away")
            what.symlink_to(secret.parent if what.name == "deep" else secret)
            return checked(folder, parts)

        return change

    for name in ("deep/w.bin", "deep"):
        own = tmp_path / f"own-{Path(name).name}"
        (own / "deep").mkdir(parents=True)
        (own / "deep" / "w.bin").write_bytes(bytes(WEIGHT.nbytes))
        (own / "m.onnx").write_bytes(model("deep/w.bin").SerializeToString())
        monkeypatch.setattr(beside, "_without_links", swapped(own / name))
        with pytest.raises(SourceError, match="cannot be read"):
            read_onnx(own / "m.onnx")


def test_the_file_that_a_link_leads_to_is_named_where_its_weights_are_beside_that(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "m.onnx").write_bytes(model("w.bin").SerializeToString())
    (tmp_path / "far" / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m.onnx").symlink_to("far/m.onnx")
    with pytest.raises(SourceError, match=r"name the file it leads to, .*far/m\.onnx"):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_that_is_a_link_into_a_cache_is_read(suffix, tmp_path):
    network = create_model("irep_resnet18", width=4, blocks=(1,)).eval()
    snapshot, blob = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs" / "0"
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    save(network, tmp_path / f"m{suffix}")
    (tmp_path / f"m{suffix}").rename(blob)
    (snapshot / f"model{suffix}").symlink_to("../../blobs/0")
    assert type(load(snapshot / f"model{suffix}").model) is type(network)
    assert open_source(snapshot / f"model{suffix}").sha256 is not None


def test_tensors_in_attributes_subgraphs_and_functions_count(tmp_path):
    def kept(name: str) -> TensorProto:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=name)
        return tensor

    def constant(name: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=kept(name))

    branch = helper.make_graph([constant("inner")], "b", [], [helper.make_tensor_value_info("inner", 1, [2])])
    nodes = [constant("a"), helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", 1, [2])], [kept("weight")])
    proto = helper.make_model(graph)
    proto.functions.add(name="f", domain="d").node.append(constant("of_function"))
    assert sorted(beside.locations(proto)) == ["a", "inner", "of_function", "weight"]
    for name in beside.locations(proto):
        (tmp_path / name).write_bytes(np.array([1, 2], np.float32).tobytes())
    beside.put_weights(proto, tmp_path / "m.onnx")
    assert beside.locations(proto) == []
    np.testing.assert_array_equal(numpy_helper.to_array(proto.functions[0].node[0].attribute[0].t), [1, 2])

"""ONNX files that are made to read other files, to hang or to eat memory: all refused before ONNX Runtime sees them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import KvantError
from onnx_files import save, two_layers

onnx = pytest.importorskip("onnx")
helper, TensorProto = onnx.helper, onnx.TensorProto


def refused(path: Path) -> str:
    from kvant.formats.onnx.reader import read_onnx

    with pytest.raises(KvantError) as caught:
        read_onnx(path)
    message = str(caught.value)
    assert len(message) < 1500
    assert str(path.parent) in message
    return message


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    return two_layers(tmp_path / "m" / "model.onnx", external=True)


def change(path: Path, how: Callable[[Any], None]) -> Path:
    proto = onnx.load(str(path), load_external_data=False)
    how(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def place(path: Path, **entries: str) -> Path:
    """Give the first external tensor other entries."""

    def how(proto: Any) -> None:
        tensor = next(t for t in proto.graph.initializer if t.external_data)
        kept = {e.key: e.value for e in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in kept.items():
            tensor.external_data.add(key=key, value=value)

    return change(path, how)


def test_the_untouched_model_is_read(model: Path) -> None:
    from kvant.formats.onnx.reader import data_files, read_onnx

    assert [f.name for f in data_files(read_onnx(model), model)] == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../outside", "a/../../outside", "C:\\x", "..\\x", "", "x\0y", "//host/x", "."]
)
def test_external_data_outside(model: Path, location: str) -> None:
    (model.parent.parent / "outside").write_bytes(bytes(1 << 16))
    refused(place(model, location=location))


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "99999999"},
        {"length": "7"},
        {"offset": "-1"},
        {"offset": "1e3"},
        {"length": "9" * 30},
        {"offset": "²"},
    ],
    ids=str,
)
def test_external_ranges(model: Path, entries: dict[str, str]) -> None:
    refused(place(model, **entries))


def test_external_symbolic_link(model: Path) -> None:
    data = model.with_name("model.onnx.data")
    data.rename(model.parent.parent / "data")
    data.symlink_to(model.parent.parent / "data")
    assert "symbolic link" in refused(model)


def test_external_directory_link(model: Path) -> None:
    inner = model.parent.parent / "inner"
    inner.mkdir()
    model.with_name("model.onnx.data").rename(inner / "data")
    (model.parent / "link").symlink_to(inner)
    assert "symbolic link" in refused(place(model, location="link/data"))


def test_external_hard_link(model: Path) -> None:
    os.link(model.with_name("model.onnx.data"), model.with_name("other"))
    assert "hard links" in refused(model)


def test_external_pipe(model: Path) -> None:
    model.with_name("model.onnx.data").unlink()
    os.mkfifo(model.with_name("model.onnx.data"))
    assert "regular file" in refused(model)


def test_external_missing(model: Path) -> None:
    model.with_name("model.onnx.data").unlink()
    assert "missing" in refused(model)


@pytest.mark.parametrize("dims", [[1 << 62, 1 << 62], [-1, 4], [1 << 40], [3]], ids=str)
def test_initializer_shapes(model: Path, dims: list[int]) -> None:
    def how(proto: Any) -> None:
        tensor = proto.graph.initializer[0]
        del tensor.dims[:]
        tensor.dims.extend(dims)

    refused(change(model, how))


def test_unknown_element_type(model: Path) -> None:
    refused(change(model, lambda proto: setattr(proto.graph.initializer[0], "data_type", 99)))


def graph_of(nodes: list[Any], **more: Any) -> Any:
    value = helper.make_tensor_value_info
    return helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, None)], **more
    )


def test_cycle(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    save(graph_of(nodes), tmp_path / "m.onnx")
    assert "cycle" in refused(tmp_path / "m.onnx")


def test_cycle_through_an_inner_graph(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["y"], ["z"])], "i", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])]
    )
    save(graph_of([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)]), tmp_path / "m.onnx")
    assert "cycle" in refused(tmp_path / "m.onnx")


def test_value_made_twice(tmp_path: Path) -> None:
    save(graph_of([helper.make_node("Relu", ["x"], ["y"])] * 2), tmp_path / "m.onnx")
    assert "twice" in refused(tmp_path / "m.onnx")


@pytest.mark.parametrize("opsets", [[], [("com.microsoft", 1)], [("", 999)], [("", 1)], [("", -1)]], ids=str)
def test_opsets(tmp_path: Path, opsets: list[tuple[str, int]]) -> None:
    save(graph_of([helper.make_node("Relu", ["x"], ["y"])]), tmp_path / "m.onnx", opsets=opsets)
    assert "opset" in refused(tmp_path / "m.onnx")


def test_operators_with_code_of_their_own(tmp_path: Path) -> None:
    save(
        graph_of([helper.make_node("Run", ["x"], ["y"], domain="evil")]), tmp_path / "m.onnx",
        opsets=[("", 17), ("evil", 1)],
    )  # fmt: skip
    assert "code of their own" in refused(tmp_path / "m.onnx")


def with_functions(path: Path, bodies: dict[str, list[str]]) -> Path:
    """Write a model whose functions call others."""
    save(graph_of([helper.make_node(next(iter(bodies)), ["x"], ["y"], domain="f")]), path, opsets=[("", 17), ("f", 1)])
    functions = []
    for name, calls in bodies.items():
        names = ["x", *(f"v{i}" for i in range(len(calls) - 1)), "y"]
        nodes = [helper.make_node(c, [a], [b], domain="f") for c, a, b in zip(calls, names, names[1:], strict=False)]
        functions.append(helper.make_function("f", name, ["x"], ["y"], nodes, [helper.make_opsetid("f", 1)]))
    return change(path, lambda proto: proto.functions.extend(functions))


def test_function_that_calls_itself(tmp_path: Path) -> None:
    assert "calls itself" in refused(with_functions(tmp_path / "m.onnx", {"a": ["b"], "b": ["a"]}))


def test_functions_that_unfold_without_end(tmp_path: Path) -> None:
    bodies = {f"f{i}": [f"f{i + 1}"] * 10 for i in range(12)} | {"f12": ["f13"]}
    assert "unfolds" in refused(with_functions(tmp_path / "m.onnx", bodies))


def test_fill_of_a_huge_tensor(tmp_path: Path) -> None:
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [1 << 20, 1 << 20])
    save(graph_of([helper.make_node("ConstantOfShape", ["s"], ["y"])], initializer=[shape]), tmp_path / "m.onnx")
    assert "elements" in refused(tmp_path / "m.onnx")


def test_small_file_of_many_messages(tmp_path: Path) -> None:
    nodes = b"\x0a\x00" * 4_100_000  # empty nodes
    length = bytearray()
    rest = len(nodes)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + bytes([*length, rest]) + nodes)
    assert "messages" in refused(tmp_path / "m.onnx")


def test_messages_deep_in_one_another(tmp_path: Path) -> None:
    graph = graph_of([helper.make_node("Relu", ["x"], ["y"])])
    for _ in range(25):
        graph = graph_of([helper.make_node("If", ["x"], ["y"], then_branch=graph)])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializePartialToString())
    assert "deeper" in refused(tmp_path / "m.onnx")


def texts(descriptor: Any, at: tuple[str, ...] = (), *, depth: int = 4) -> list[tuple[str, ...]]:
    """The ways from a message to every field of text in it, `depth` messages deep at most."""
    found = []
    for field in descriptor.fields:
        if field.type == field.TYPE_STRING:
            found.append((*at, field.name))
        elif field.message_type is not None and field.name not in at and len(at) < depth:
            found += texts(field.message_type, (*at, field.name), depth=depth)
    return found


def with_bytes(way: tuple[str, ...]) -> bytes:
    """A model that holds bytes which are not UTF-8 in one field of text, put together by hand."""
    descriptors, numbers = onnx.ModelProto.DESCRIPTOR, []
    for name in way:
        field = descriptors.fields_by_name[name]
        numbers.append(field.number)
        descriptors = field.message_type
    data = b"a\xffb"
    for number in reversed(numbers):
        assert len(data) < 128
        tag = number << 3 | 2
        data = (bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])) + bytes([len(data)]) + data
    return data


def test_text_that_is_not_utf8_wherever_onnx_has_text(tmp_path: Path) -> None:
    ways = texts(onnx.ModelProto.DESCRIPTOR)
    assert ("graph", "node", "domain") in ways
    assert ("graph", "initializer", "external_data", "value") in ways
    whole = two_layers(tmp_path / "whole.onnx").read_bytes()
    for number, way in enumerate(ways):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(whole + with_bytes(way))
        assert "is not UTF-8" in refused(path), way


@pytest.mark.parametrize("cut", [1, 9, 50, 200])
def test_truncated(model: Path, cut: int) -> None:
    model.write_bytes(model.read_bytes()[:-cut])
    refused(model)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"GGUF" + bytes(60), b"\xff" * 64], ids=["empty", "0", "gguf", "ff"]
)
def test_no_onnx_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path / "m.onnx")

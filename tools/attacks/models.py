"""ONNX files: external data, structure, sizes, bombs, what is no file; damage at random."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from attempt import Attempt, Call
from kit import EXPORT, Kit, in_turn, network
from onnx import TensorProto, helper, numpy_helper

Edit = Callable[[onnx.ModelProto, Path], object]
PLAIN = ("--energy", "0.9", "--calib", "none", "--dry-run", "--quiet")


def attempts(kit: Kit) -> Iterator[Attempt]:
    """The whole family."""
    for name, edit in {**_external(), **_structure()}.items():
        yield Attempt("ONNX files", name, partial(_edited, edit, PLAIN))
    for name, edit in _bombs().items():
        yield Attempt("ONNX files", name, partial(_edited, edit, (*EXPORT, "-o", "o.onnx")))
    for name, make in _special().items():
        for ending in (".onnx", ".pt", ".safetensors"):
            yield Attempt("ONNX files", f"{name} as model{ending}", partial(_special_file, make, ending, kit))


def _edited(edit: Edit, options: tuple[str, ...], folder: Path) -> Call:
    model = network()
    edit(model, folder)
    if not (folder / "m.onnx").exists():
        (folder / "m.onnx").write_bytes(model.SerializeToString())
    return Call("trp-export", ["m.onnx", *options], codes=(0, 2, 3, 4, 5, 11))


def _external() -> dict[str, Edit]:
    """Where the data of a weight may claim to lie."""
    places = {
        "parent": "../secret.bin",
        "absolute": "/etc/passwd",
        "hidden parent": "a/../../secret.bin",
        "backslashes": "..\\secret.bin",
        "a device": "zero",
        "a pipe": "pipe",
        "a link out": "link",
        "a chain of links out": "chain",
        "a loop of links": "loop",
        "a folder": "folder",
        "missing": "absent.bin",
        "long": "x" * 5000,
        "many folders": "a/" * 2000 + "x",
        "with a null": "key\0.bin",
        "empty": "",
        "a dot": ".",
        "a second name (hard link)": "second",
        "an address": "http://127.0.0.1:1/x",
        "a file of proc": "proc",
        "a Git LFS pointer": "pointer",
        "sound": "key.bin",
    }
    fields = {
        "offset negative": ("offset", "-1"),
        "offset beyond": ("offset", "999999999999"),
        "offset text": ("offset", "x"),
        "offset of 5,000 digits": ("offset", "9" * 5000),
        "length negative": ("length", "-5"),
        "length beyond": ("length", str(2**62)),
        "length twice": ("length", "1"),
        "location twice": ("location", "../secret.bin"),
        "unknown key": ("checksum", "x" * 100_000),
        "length in another alphabet": ("length", "\u0661\u0662"),
    }
    holders = {"initializer": _in_initializer, "Constant": _in_constant, "function": _in_function, "sparse": _in_sparse}
    edits: dict[str, Edit] = {
        f"data {name}, in {holder}": partial(_put_external, put, location, ())
        for holder, put in holders.items()
        for name, location in places.items()
    }
    edits |= {
        f"data {name}": partial(_put_external, _in_initializer, "key.bin", (pair,)) for name, pair in fields.items()
    }
    return edits


def _put_external(
    put: Callable[[onnx.ModelProto, TensorProto], None],
    location: str,
    more: tuple[tuple[str, str], ...],
    model: onnx.ModelProto,
    folder: Path,
) -> None:
    _fill(folder)
    tensor = TensorProto(name="conv1.weight", data_type=TensorProto.FLOAT, dims=(16, 3, 3, 3))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), *more):
        tensor.external_data.add(key=key, value=value)
    put(model, tensor)


def _fill(folder: Path) -> None:
    """Files that external data must not reach, and one that it may."""
    values = np.ones(432, np.float32).tobytes()
    (folder.parent / "secret.bin").write_bytes(values)
    (folder / "key.bin").write_bytes(values)
    (folder / "first").write_bytes(values)
    os.link(folder / "first", folder / "second")
    (folder / "folder").mkdir()
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "proc").symlink_to("/proc/self/environ")
    (folder / "link").symlink_to(folder.parent / "secret.bin")
    (folder / "chain").symlink_to("link")
    (folder / "loop").symlink_to("loop")
    (folder / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1728\n")
    os.mkfifo(folder / "pipe")


def _in_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer[0].CopyFrom(tensor)


def _in_constant(model: onnx.ModelProto, tensor: TensorProto) -> None:
    del model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["conv1.weight"], value=tensor))


def _in_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    del model.graph.initializer[0]
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor)]
    model.functions.append(helper.make_function("own", "Weight", [], ["w"], nodes, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.insert(0, helper.make_node("Weight", [], ["conv1.weight"], domain="own"))


def _in_sparse(model: onnx.ModelProto, tensor: TensorProto) -> None:
    del model.graph.initializer[0]
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor)
    sparse.values.dims[:] = [432]
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(432), "indices"))
    sparse.dims.extend([16, 3, 3, 3])


def _structure() -> dict[str, Edit]:
    """Graphs that contradict themselves."""

    def edit(change: Callable[[onnx.ModelProto], object]) -> Edit:
        return lambda model, folder: change(model)

    def tensors_attribute(model: onnx.ModelProto) -> None:
        tensor = TensorProto(name="t", data_type=1, dims=(4,), data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="../secret.bin")
        attribute = onnx.AttributeProto(name="values", type=onnx.AttributeProto.TENSORS, tensors=[tensor])
        model.graph.node.add(op_type="Odd", domain="own", input=["b"], output=["odd"]).attribute.append(attribute)
        model.opset_import.append(helper.make_opsetid("own", 1))

    def recursive(model: onnx.ModelProto) -> None:
        nodes = [helper.make_node("F", ["x"], ["y"], domain="own")]
        model.functions.append(helper.make_function("own", "F", ["x"], ["y"], nodes, [helper.make_opsetid("own", 1)]))
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node[1].op_type, model.graph.node[1].domain = "F", "own"

    dims = {
        "negative": [-1, 3, 3, 3],
        "zero": [0, 3, 3, 3],
        "2^62": [2**62, 2**62, 3, 3],
        "2^31": [2**31, 1, 1, 1],
        "100,000 axes": [1] * 100_000,
        "none": [],
        "other rank": [16, 27],
    }
    edits = {f"weight with dims {name}": edit(partial(_set_dims, values)) for name, values in dims.items()}
    for kind in (0, 8, 16, 21, 99, -1):
        edits[f"weight of type {kind}"] = edit(partial(_set_type, kind))
    for field, values in {
        "pads": [[-5] * 4, [2**40] * 4, [1], [1] * 1000],
        "strides": [[0, 0], [-1, -1], [2**62] * 2],
        "dilations": [[0, 0], [2**40] * 2],
        "group": [[0], [-1], [7], [2**62]],
    }.items():
        for value in values:
            edits[f"Conv with {field} {str(value)[:30]}"] = edit(partial(_set_attribute, field, value))
    for name, version in {"opset 0": 0, "opset -1": -1, "opset 10^9": 10**9, "opset 6": 6}.items():
        edits[name] = edit(partial(_set_opset, version))
    edits |= {
        "weights NaN": edit(partial(_set_values, np.nan)),
        "weights infinite": edit(partial(_set_values, np.inf)),
        "weights 1e38": edit(partial(_set_values, 1e38)),
        "weights zero": edit(partial(_set_values, 0.0)),
        "no nodes": edit(lambda model: model.graph.ClearField("node")),
        "no outputs": edit(lambda model: model.graph.ClearField("output")),
        "no inputs": edit(lambda model: model.graph.ClearField("input")),
        "no opset": edit(lambda model: model.ClearField("opset_import")),
        "a cycle": edit(lambda model: model.graph.node[0].input.__setitem__(0, "c")),
        "two values of one name": edit(lambda model: model.graph.node[1].output.__setitem__(0, "a")),
        "unknown operator": edit(lambda model: setattr(model.graph.node[1], "op_type", "Nonsense")),
        "unknown domain": edit(lambda model: setattr(model.graph.node[1], "domain", "evil.example")),
        "recursive function": edit(recursive),
        "tensors attribute out of the folder": edit(tensors_attribute),
        "input without type": edit(lambda model: model.graph.input[0].ClearField("type")),
        "input of text": edit(lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 8)),
        "input of 10^12": edit(partial(_set_input, [10**4, 3, 10**4, 10**4])),
        "input of negative size": edit(partial(_set_input, [1, 3, -12, 12])),
        "IR version 10^6": edit(lambda model: setattr(model, "ir_version", 10**6)),
        "training info": edit(lambda model: model.training_info.add().algorithm.node.add(op_type="Relu")),
        "metadata of 10 MB": edit(lambda model: model.metadata_props.add(key="x", value="y" * 10**7)),
        "a layer name of 10 MB": edit(lambda model: setattr(model.graph.node[0], "name", "n" * 10**7)),
        "doc of 10 MB": edit(lambda model: setattr(model, "doc_string", "d" * 10**7)),
        "an If without branches": edit(lambda model: model.graph.node.add(op_type="If", input=["b"], output=["z"])),
    }
    return edits


def _set_dims(dims: list[int], model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = dims


def _set_type(kind: int, model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = kind


def _set_opset(version: int, model: onnx.ModelProto) -> None:
    model.opset_import[0].version = version


def _set_attribute(field: str, value: list[int], model: onnx.ModelProto) -> None:
    node = model.graph.node[0]
    kept = [attribute for attribute in node.attribute if attribute.name != field]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(field, value[0] if field == "group" else value)])


def _set_values(value: float, model: onnx.ModelProto) -> None:
    array = np.full((16, 3, 3, 3), value, np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "conv1.weight"))


def _set_input(shape: list[int], model: onnx.ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, shape))


def _bombs() -> dict[str, Edit]:
    """Small files that stand for much memory or many nodes."""
    edits: dict[str, Edit] = {
        f"{op} of 4 * 10^{power} bytes": _constant(op, 10**power)
        for op in ("ConstantOfShape", "Range", "Tile", "Expand")
        for power in (8, 9, 11, 13)
    }
    edits |= {f"functions {depth} deep": _functions(depth) for depth in (6, 12, 19, 60)}
    edits |= {f"branches {depth} deep": _nested(depth) for depth in (3, 12, 60)}
    edits["2,000 nodes"] = _nodes(2000)
    return edits


def _constant(op: str, size: int) -> Edit:
    def edit(model: onnx.ModelProto, folder: Path) -> None:
        graph = model.graph
        shape = numpy_helper.from_array(np.array([size]), "shape")
        one = numpy_helper.from_array(np.ones(1, np.float32), "one")
        graph.initializer.extend([shape, one])
        if op == "ConstantOfShape":
            graph.node.insert(0, helper.make_node(op, ["shape"], ["big"]))
        elif op == "Range":
            numbers = {"r0": 0.0, "r1": float(size), "r2": 1.0}
            graph.initializer.extend(numpy_helper.from_array(np.array(v, np.float32), n) for n, v in numbers.items())
            graph.node.insert(0, helper.make_node(op, list(numbers), ["big"]))
        else:
            graph.node.insert(0, helper.make_node(op, ["one", "shape"], ["big"]))
        graph.node.insert(1, helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0))
        graph.node.append(helper.make_node("Add", ["logits", "sum"], ["y"]))
        graph.output[0].name = "y"

    return edit


def _functions(depth: int) -> Edit:
    def edit(model: onnx.ModelProto, folder: Path) -> None:
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        inner = [helper.make_node("Neg", ["x"], ["m"]), helper.make_node("Neg", ["m"], ["y"])]
        for level in range(depth):
            model.functions.append(helper.make_function("own", f"F{level}", ["x"], ["y"], inner, imports))
            inner = [helper.make_node(f"F{level}", ["x"], ["m"], domain="own")]
            inner.append(helper.make_node(f"F{level}", ["m"], ["y"], domain="own"))
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node[1].op_type, model.graph.node[1].domain = f"F{depth - 1}", "own"

    return edit


def _nested(depth: int) -> Edit:
    def edit(model: onnx.ModelProto, folder: Path) -> None:
        body = helper.make_graph([helper.make_node("Identity", ["b"], ["z"])], "g", [], [onnx.ValueInfoProto(name="z")])
        for _ in range(depth):
            node = helper.make_node("If", ["flag"], ["z"], then_branch=body, else_branch=body)
            body = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="z")])
            if body.ByteSize() > 2 * 10**6:
                break
        model.graph.node.insert(2, body.node[0])

    return edit


def _nodes(count: int) -> Edit:
    def edit(model: onnx.ModelProto, folder: Path) -> None:
        chain = [helper.make_node("Neg", [f"n{i}" if i else "b"], [f"n{i + 1}"]) for i in range(count)]
        rest = list(model.graph.node[2:])
        del model.graph.node[2:]
        model.graph.node.extend(chain)
        model.graph.node.extend(rest)
        model.graph.node[2 + count].input[0] = f"n{count}"

    return edit


def _special() -> dict[str, Callable[[Path], object]]:
    """What is no plain file."""
    return {
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a link to /dev/urandom": lambda path: path.symlink_to("/dev/urandom"),
        "a link to /dev/full": lambda path: path.symlink_to("/dev/full"),
        "a link to /dev/tty": lambda path: path.symlink_to("/dev/tty"),
        "a loop of links": lambda path: path.symlink_to(path.name),
        "a link to nothing": lambda path: path.symlink_to("absent"),
        "a link to /proc/self/mem": lambda path: path.symlink_to("/proc/self/mem"),
        "an empty file": Path.touch,
        "a file of 3 TB of nothing": in_turn(Path.touch, lambda path: os.truncate(path, 3 * 10**12)),
        "a file without rights": in_turn(lambda path: path.write_bytes(b"x"), lambda path: path.chmod(0)),
        "a web page": lambda path: path.write_text("<!DOCTYPE html><html><script>alert(1)</script>"),
    }


def _special_file(make: Callable[[Path], object], ending: str, kit: Kit, folder: Path) -> Call:
    make(folder / f"m{ending}")
    arch = () if ending == ".onnx" else ("--arch", "resnet20")
    return Call("trp-export", [f"m{ending}", *PLAIN, *arch], codes=(2, 3))

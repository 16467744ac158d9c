"""Small ONNX models for the benchmark's tests, written as text, and a record of processes left behind."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

ANY_TYPES = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x, float16[N, S] h, int64[2] index, uint8[2, 3] image, bool flag, double[N, 4] d)
    => (float[N, 4] y, float16[N, S] g, float[K, 4] rows, uint8[2, 3] same, bool no, double[N, 4] e)
{ y = Relu(x)  g = Neg(h)  rows = Gather(x, index)  same = Identity(image)  no = Not(flag)  e = Abs(d) }"""


@pytest.fixture(autouse=True)
def few_processes() -> None:
    """What is tested here starts as many processes as for users."""


@pytest.fixture
def conv_net(tmp_path: Path) -> Path:
    """A small convolutional network, 3x16x16 in, 10 out, with a fixed batch of 1."""
    return save_conv_net(tmp_path / "net.onnx")


def save_conv_net(path: Path, *, width: int = 8, depth: int = 1, batch: int | str = 1) -> Path:
    """conv1, then `depth` more convs, global average, a linear layer. Random weights, the same every time."""
    rng = np.random.default_rng(0)
    weights, nodes, last, channels = [], [], "x", 3
    for i in range(depth + 1):
        kernel = rng.standard_normal((width, channels, 3, 3)).astype(np.float32) / np.sqrt(9 * channels)
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"conv{i + 1}.weight"))
        nodes.append(
            helper.make_node("Conv", [last, f"conv{i + 1}.weight"], [f"c{i}"], name=f"conv{i + 1}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i + 1}"))
        last, channels = f"r{i}", width
    weights.append(numpy_helper.from_array(rng.standard_normal((width, 10)).astype(np.float32), "fc.weight"))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    nodes.append(helper.make_node("MatMul", ["flat", "fc.weight"], ["y"], name="fc"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture
def any_types(tmp_path: Path) -> Path:
    """Six inputs of different types, some of dynamic shape, and as many outputs."""
    onnx.save(parser.parse_model(ANY_TYPES), tmp_path / "any.onnx")
    return tmp_path / "any.onnx"


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago: another may take it, so be ready to try again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def runners_below(folder: Path, program: str) -> list[psutil.Process]:
    """The processes with `program` among their arguments that work in `folder`: not those of another test run."""
    found = [one for one in psutil.process_iter(["cmdline", "cwd"]) if program in (one.info["cmdline"] or [])]
    return [one for one in found if Path(one.info["cwd"] or "/").is_relative_to(folder.resolve())]


@pytest.fixture
def no_process_left() -> Iterator[None]:
    """Fails when the test leaves a descendant of this process behind."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]

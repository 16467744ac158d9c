"""Nothing private leaves: secrets planted everywhere in a real export are in no file that is written."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command import Command
from models import build, save

from models_zoo import find_architecture
from trp_export.system.privacy import is_private, names_without_paths, without_paths

HOME = "/home/zebediah-quill"
USER = "zebediahquill"
OTHER = "/Users/otherperson/nets/resnet.py"
TRACE = f'Traceback (most recent call last):\n  File "{HOME}/train.py", line 7, in <module>\n    net(x)'
SECRETS = ("zebediah", "otherperson", "Traceback", 'py", line', "site-packages", "torch/nn/modules")


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", HOME)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20 as torch exports it, stack traces and all, with more of the kind added."""
    torch.manual_seed(0)
    network = find_architecture("resnet20").build(None).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network, (torch.randn(1, 3, 32, 32),), dynamo=True, verbose=False)
    path = tmp_path_factory.mktemp("exported") / "plain.onnx"
    program.save(path)
    assert b'.py", line' in path.read_bytes() or b".py:" in path.read_bytes()  # torch itself leaks.
    return path


def plant(model: onnx.ModelProto) -> None:
    model.producer_name, model.producer_version, model.domain = f"train {HOME}", USER, f"{HOME}/nets"
    model.doc_string = TRACE
    model.metadata_props.add(key="author", value=USER)
    model.metadata_props.add(key="checkpoint", value=f"{HOME}/runs/last.pt")
    model.metadata_props.add(key=f"{HOME}/key", value="1")
    model.metadata_props.add(key="trace", value=TRACE)
    model.metadata_props.add(key="source", value=f"exported by {OTHER}")
    model.metadata_props.add(key="names", value="{0: 'cat', 1: 'dog'}")
    model.graph.name, model.graph.doc_string = f"{HOME}/graph", TRACE
    model.graph.metadata_props.add(key="where", value=HOME)
    for index, node in enumerate(model.graph.node):
        node.doc_string = TRACE
        node.metadata_props.add(key="stack", value=TRACE)
        node.name = f"{HOME}/nets/{node.name or node.op_type}_{index}"
        for attribute in node.attribute:
            attribute.doc_string = f"{OTHER}:3"
    for tensor in model.graph.initializer:
        tensor.doc_string = f"loaded from {HOME}/last.pt"
        tensor.metadata_props.add(key="file", value=f"{HOME}/last.pt")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.doc_string = f"seen by {USER} in {OTHER}"
        value.metadata_props.add(key="by", value=USER)
    inner = {name for node in model.graph.node for name in node.output} - {one.name for one in model.graph.output}
    renamed = {name: f"{HOME}/nets/{name}" for name in inner} | {
        tensor.name: f"{HOME}/nets/{tensor.name}" for tensor in model.graph.initializer
    }
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for one in (*model.graph.initializer, *model.graph.value_info):
        one.name = renamed.get(one.name, one.name)


def leaks(folder: Path, *more: str) -> list[str]:
    contents = ((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    return [
        f"{path.relative_to(folder)}: {secret}: ...{content[max(0, at - 60) : at + 60]!r}"
        for path, content in contents
        for secret in (*SECRETS, *more)
        if (at := content.find(secret.encode())) >= 0
    ]


def test_a_bundle_holds_no_secret(at_home: None, trp: Command, exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    plant(model)
    (tmp_path / "zebediah").mkdir()
    (tmp_path / "zebediah" / "weights").mkdir()
    source = tmp_path / "zebediah" / "net.onnx"
    onnx.save(model, source, save_as_external_data=True, location="weights/net.data", size_threshold=1024)
    images = tmp_path / "zebediah" / "photos.npz"
    np.savez(images, images=np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    assert len(leaks(tmp_path / "zebediah")) > len(SECRETS) // 2
    outcome = trp(source, "--rank", "8", "--eval", images, "--no-bench", "--bundle", "app", "--ort", "arm")
    assert outcome.code == 0, outcome.err
    assert leaks(tmp_path / "app", str(tmp_path)) == []
    made = onnx.load(tmp_path / "app" / "model.onnx")
    kept = {prop.key: prop.value for prop in made.metadata_props}
    assert kept["names"] == "{0: 'cat', 1: 'dog'}"  # What apps read stays.
    assert "layers are factor pairs" in kept["trp_export.plan"]
    assert made.producer_name == "trp-export"
    names = {node.name for node in made.graph.node}
    assert any(name.endswith(".reduce") for name in names)
    assert any(name.endswith(".expand") for name in names)


@pytest.mark.slow
def test_a_timed_bundle_and_a_plain_export_hold_no_path(trp: Command, tmp_path: Path) -> None:
    """The benchmark names models by path where names repeat: original and result are both model.onnx."""
    (tmp_path / "zebediah").mkdir()
    model = save(build(), tmp_path / "zebediah" / "model.onnx")
    given = (model, "--rank", "2", "--budget", "0.2")
    (tmp_path / "out").mkdir()
    assert trp(*given, "--bundle", "out/app").code == 0
    assert trp(*given, "-o", "out/small.onnx", "--report", "out/small.html").code == 0
    assert leaks(tmp_path / "out", str(tmp_path)) == []


PRIVATE = (
    f"{HOME}/x",
    f'File "{OTHER}", line 3',
    TRACE,
    "C:\\Users\\Zoe\\net.onnx",
    "~/nets/net.onnx",
    "/mnt/disk/a",
    "file:///home/zoe/net.onnx",
    "\\\\server\\share\\net.onnx",
    "/projects/alice/x",
    "/export/home/alice/x",
    "/storage/team/alice/x",
    "/dbfs/mnt/x",
    "/gscratch/lab/x",
    "/u/alice/nets/x",
    "/users/bob/x",
    "/run/media/bob/x",
    "/app/alice/src/net.onnx",
    "/lustre01/alice/x",
    "scope//home/alice/x/Conv",
    "scope/home/alice/x/Conv",
    "scope//usr/lib/x/Conv",
    "scope//C:\\nets\\x",
    "model/~/nets/x",
)
PUBLIC = (
    *("/layer1/layer1.0/Conv", "https://example.com/home/x", "1/2", "{0: 'cat'}", "MIT", "w/o bias", "a.b/c"),
    *("/net/net.0/conv/Conv", "/net/fc/Gemm", "/app/app.1/Conv", "/proj/Conv", "/model/backbone/Conv", "and/or"),
    *("StatefulPartitionedCall/model/conv2d/Conv2D", "a/Relu;b/FusedBatchNormV3", "/content/content.0/a/a.1/Conv"),
)


@pytest.mark.parametrize("text", PRIVATE)
def test_is_private_finds_paths_and_traces(text: str) -> None:
    assert is_private(text)


@pytest.mark.parametrize("text", PUBLIC)
def test_is_private_leaves_names_of_networks(text: str) -> None:
    assert not is_private(text)
    assert without_paths(text) == text


def test_without_paths_keeps_the_last_part() -> None:
    assert without_paths("/home/zoe/nets/net.onnx: odd") == "net.onnx: odd"
    assert without_paths("../clients/acme/photos: 3 files", [Path("../clients/acme/photos")]) == "photos: 3 files"
    assert without_paths("C:\\Users\\Zoe\\net.onnx failed") == "net.onnx failed"
    assert without_paths("scope//home/alice/x/Conv") == "scope/Conv"
    assert without_paths("/home/zoe/net.py:3: bad (/users/bob/x)") == "net.py:3: bad (x)"


@pytest.mark.parametrize("path", ["/content/drive/MyDrive/alice/x/Conv", "/net/host/alice/x/Conv"])
def test_a_path_that_ends_like_a_layer_is_known_by_the_rest_of_the_graph(path: str) -> None:
    names = ["/backbone/conv/Conv", "/backbone/conv_1/Conv", path]
    assert names_without_paths(names, ["backbone.conv.weight", "backbone.conv_1.weight"]) == {path: "Conv"}

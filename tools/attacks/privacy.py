"""Local paths and the user's name, in every place of a model, must not reach a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import onnx
from attempt import Attempt, Call, Ended
from kit import Kit, network

SECRET = "alicebobson"
PATHS = [
    path.replace("USER", SECRET)
    for path in (
        *("/home/USER/net.py", "/Users/USER/net.py", "/users/USER/net.py", "/root/USER/net.py", "~/USER/net.py"),
        *("/content/drive/MyDrive/USER/net", "/kaggle/working/USER/net", "/mnt/data/USER/net", "/media/USER/disk/net"),
        *("/projects/USER/net", "/proj/USER/net", "/net/USER/net", "/export/home/USER/net", "/storage/USER/net"),
        *("/dbfs/USER/net", "/databricks/USER/net", "/cluster/USER/net", "/gscratch/USER/net", "/u/USER/net"),
        *("/run/media/USER/net", "/app/USER/net", "/srv/USER/net", "/var/lib/USER/net", "/opt/USER/net"),
        *("/workspace/USER/net", "/scratch/USER/net", "/lustre/USER/net", "/Volumes/USER/net", "/data/USER/net"),
        *("C:\\Users\\USER\\net.py", "c:/Users/USER/net.py", "D:\\work\\USER\\net", "\\\\server\\share\\USER\\net"),
        *("file:///home/USER/net", "file://host/USER/net", "//server/USER/net", "scope//home/USER/x/Conv"),
        *("a/home/USER/x/Conv", "at /home/USER/net.py:12", "(/home/USER/net)", "'/home/USER/net'", "x=/home/USER/net"),
    )
]


def attempts(kit: Kit) -> Iterator[Attempt]:
    """Each spelling, in all places at once."""
    for path in PATHS:
        yield Attempt("private paths", path, partial(_export, path))


def _export(path: str, folder: Path) -> Call:
    model = network()
    for put in (_graph, _node, _inner, _texts, _licence):
        put(model, path)
    onnx.save(model, folder / "m.onnx")
    return Call(
        "trp-export",
        ["m.onnx", "--rank", "2", "--calib", "none", "--no-bench", "--quiet", "--bundle", "b"],
        codes=(0,),
        check=_secret,
    )


def _secret(ended: Ended) -> str | None:
    shown = [
        path.name for path in (ended.folder / "b").rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    return f"the path is in {', '.join(shown)}" if shown else None


def _graph(model: onnx.ModelProto, path: str) -> None:
    model.graph.name = path


def _node(model: onnx.ModelProto, path: str) -> None:
    model.graph.node[0].name = path


def _inner(model: onnx.ModelProto, path: str) -> None:
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = path


def _texts(model: onnx.ModelProto, path: str) -> None:
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = path
    model.graph.initializer[0].doc_string = path
    model.graph.node[1].metadata_props.add(key="source", value=path)
    model.metadata_props.add(key="trained by", value=path)


def _licence(model: onnx.ModelProto, path: str) -> None:
    model.metadata_props.add(key="license", value=f"See {path} for it")

"""Local paths are found by their form; the names of networks, which have the same form, stay."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.system.privacy import is_private, names_without_paths, without_paths

PARTS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=2, max_size=8)
# A part of a network may be called as a folder of this run is, such as /root.
FOLDERS = ("root", "tmp", "model")
MODULES = st.sampled_from(FOLDERS) | st.text("abcdefghijklmnopqrstuvwxyz_", min_size=2, max_size=8)
OPERATORS = st.sampled_from(["Conv", "Relu", "Add", "Gemm", "MatMul", "Conv_1", "Relu_output_0"])
ROOTS = [
    *("/content/drive/MyDrive/alice", "/projects/alice", "/proj/alice", "/net/alice", "/export/home/alice"),
    *("/storage/alice", "/dbfs/alice", "/databricks/alice", "/cluster/alice", "/gscratch/alice", "/u/alice"),
    *("/users/alice", "/run/media/alice", "/app/alice", "/home/alice", "/opt/alice", "C:/Users/alice"),
    *("C:\\Users\\alice", "~/alice", "~alice/x", "file:///any/alice", "\\\\server\\alice", "//server/alice"),
]


@pytest.fixture(autouse=True, scope="module")
def container() -> Iterator[None]:
    """A machine as many containers are: its folders are called as parts of networks are."""
    home, temporary, current = FOLDERS
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", f"/{home}")
        patch.setattr(tempfile, "tempdir", f"/{temporary}")
        patch.setattr(Path, "cwd", lambda: Path("/", current))
        yield


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize(
    "around", ["{}/nets/net.onnx", "see {}/nets/net.onnx: odd", "scope/{}/nets/x", "'{}/nets/a.bin'"]
)
def test_a_path_is_private_wherever_it_lies(root: str, around: str) -> None:
    text = around.format(root)
    assert is_private(text)
    short = without_paths(text)
    assert "alice" not in short
    assert not is_private(short)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("made from:/root/secret/net.py", "made from:net.py"),
        ("jit:/tmp/run7/net.py", "jit:net.py"),
        ("-I/root/secret", "-Isecret"),
        ("cc -L/tmp/build/secret -o x", "cc -Lsecret -o x"),
    ],
)
def test_a_folder_of_this_run_is_private_behind_a_colon_or_an_option(text: str, short: str) -> None:
    assert is_private(text)
    assert without_paths(text).replace("/", "") == short.replace("/", "")


@given(st.lists(PARTS, min_size=3, max_size=6))
def test_any_absolute_path_is_private(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    assert is_private(f"loaded from {path}.")
    assert without_paths(f"loaded from {path}: odd") == f"loaded from {parts[-1]}: odd"


@pytest.mark.parametrize(
    "text",
    [
        "/layer1/layer1.0/Conv",
        "https://example.com/home/x",
        "1/2",
        "w/o",
        "a.b/c",
        "{0: '/m/011k07'}",
        "and/or",
        "a // b",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert not is_private(text)
    assert without_paths(text) == text


@given(
    scopes=st.dictionaries(MODULES, st.lists(MODULES, min_size=2, max_size=4, unique=True), min_size=1, max_size=4),
    operators=st.lists(OPERATORS, min_size=1, max_size=3),
)
def test_scopes_that_branch_stay(scopes: dict[str, list[str]], operators: list[str]) -> None:
    """/backbone/conv/Conv beside /backbone/act/Relu."""
    names = [
        f"/{scope}/{module}/{name}" for scope, modules in scopes.items() for module in modules for name in operators
    ]
    assert names_without_paths(names, []) == {}


@given(modules=st.lists(MODULES, min_size=1, max_size=4), operator=OPERATORS)
def test_scopes_that_weights_are_named_after_stay(modules: list[str], operator: str) -> None:
    """/backbone/conv/Conv with backbone.conv.weight, and nothing else."""
    name = "/" + "/".join([*modules, operator])
    assert names_without_paths([name], [".".join([*modules, "weight"])]) == {}


@given(modules=st.lists(MODULES, min_size=1, max_size=3), operator=OPERATORS)
def test_scopes_that_repeat_their_name_stay(modules: list[str], operator: str) -> None:
    """/layer1/layer1.0/conv1/Conv."""
    name = "/" + "/".join([modules[0], f"{modules[0]}.0", *modules, operator])
    assert names_without_paths([name], []) == {}


@given(
    folders=st.lists(PARTS, min_size=2, max_size=5),
    scopes=st.lists(st.tuples(MODULES, OPERATORS), min_size=1, max_size=5, unique=True),
)
def test_a_path_before_the_names_of_a_network_goes(folders: list[str], scopes: list[tuple[str, str]]) -> None:
    """/projects/alice/nets/conv/Conv beside /projects/alice/nets/act/Relu: two parts lead to one folder."""
    names = [f"/{'/'.join(folders)}/{module}/{operator}" for module, operator in scopes]
    short = names_without_paths(names, ["conv.weight", "onnx::Conv_12"])
    assert short == {name: operator for name, (_, operator) in zip(names, scopes, strict=True)}


@pytest.mark.parametrize("root", ROOTS)
def test_a_path_within_a_name_goes(root: str) -> None:
    name = f"scope/{root}/x/Conv"
    short = names_without_paths([name], [])
    assert "alice" not in short[name]
    assert short[name].endswith("Conv")


@pytest.mark.parametrize(
    "text", ["/level2/root/conv/Conv", "/level2/work/nets/Conv", "a/work/nets/x", "/work/nets_2/x/Conv", "/root/a/Conv"]
)
def test_a_folder_of_this_run_counts_at_the_start_of_a_path_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/work/nets"))
    assert not is_private(text)
    assert without_paths(text) == text


def test_what_lies_in_a_folder_of_this_run_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its end has the form of a layer's name."""
    monkeypatch.setattr(Path, "cwd", lambda: Path("/work/nets"))
    for text in ("/work/nets/Conv", "in '/work/nets/a/Conv'", "/root/a/net.onnx", "/tmp/a"):
        assert is_private(text)
        assert not is_private(without_paths(text))


def test_a_user_without_a_home_has_private_names_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(getpass, "getuser", lambda: "alicebob")
    assert is_private("made by alicebob")
    assert not is_private("layer1.conv")

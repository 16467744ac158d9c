"""Building the site: the bundle is checked, the runtime pinned, and nothing foreign is overwritten."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import onnx
import pytest
from site_server import web_demo

from trp_export.errors import DeviceError, LoadError, OutputError

STYLE = web_demo.PAGE / "style.css"


def test_a_site_holds_all_it_needs(site: Path, bundle: Path) -> None:
    described = json.loads((site / "site.json").read_text(encoding="utf-8"))
    assert described["digest"] == web_demo.sha256(bundle / "manifest.json")
    assert described["original"]["sha256"] == web_demo.sha256(site / "original.onnx")
    assert {file.name for file in (site / "ort").iterdir()} == set(web_demo.RUNTIME)
    for file in site.glob("*.*"):
        if file.suffix in (".html", ".css", ".mjs"):
            assert not re.search(r"https?://", file.read_text(encoding="utf-8")), (
                "the page loads nothing from elsewhere"
            )


def test_the_original_tells_no_folder(site: Path) -> None:
    assert str(web_demo.PAGE.parents[1]).encode() not in (site / "original.onnx").read_bytes()
    assert len(onnx.load(site / "original.onnx").graph.initializer) > 20


def test_a_foreign_folder_stays_as_it_is(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is not a site of this tool"):
        web_demo.build(bundle, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["site.json"], "is not a site of this tool"),
        (["bundle", "ort", "site.json", "thesis.txt"], r"holds thesis\.txt, which this tool did not make"),
    ],
)
def test_what_another_put_there_stays(bundle: Path, tmp_path: Path, names: list[str], message: str) -> None:
    """A folder that merely holds a file called site.json, and a site to which somebody added a file."""
    for name in names:
        (tmp_path / name).write_text("years of work")
    with pytest.raises(OutputError, match=message):
        web_demo.build(bundle, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_the_older_site_stays_where_the_new_one_cannot_take_its_place(
    site: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "site"
    shutil.copytree(site, older)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "site" and path != older:
            raise OSError(errno.EIO, "the disk failed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="the disk failed"):
        web_demo.build(bundle, older)
    assert (older / "original.onnx").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_changed_bundle_is_refused_and_the_older_site_stays(site: Path, bundle: Path, tmp_path: Path) -> None:
    older = tmp_path / "site"
    shutil.copytree(site, older)
    changed = tmp_path / "bundle"
    shutil.copytree(bundle, changed)
    with (changed / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(LoadError, match=r"model\.onnx"):
        web_demo.build(changed, older)
    assert (older / "index.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "site"]
    web_demo.build(bundle, older)
    assert json.loads((older / "site.json").read_text(encoding="utf-8"))["original"] is None
    assert not (older / "original.onnx").exists()


def test_another_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(folder: Path, version: str) -> None:
        for name in web_demo.RUNTIME:
            (folder / name).write_bytes(b"another version")

    monkeypatch.setattr(web_demo, "cached", lambda part: tmp_path / "nothing")
    monkeypatch.setattr(web_demo, "fetch", other)
    with pytest.raises(DeviceError, match="pinned"):
        web_demo.copy_runtime(tmp_path / "ort")


def test_a_runtime_of_another_version_is_not_the_one_that_is_pinned(tmp_path: Path) -> None:
    for name in web_demo.RUNTIME:
        (tmp_path / name).write_bytes(b"another version")
    assert web_demo.unlike_pinned(tmp_path) == [*web_demo.RUNTIME]


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_letters_and_edges_stand_out(scheme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), flags=re.DOTALL)[scheme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
    least = dict.fromkeys(("ink", "muted", "accent", "good", "bad"), 4.5) | {"edge": 3, "before": 3, "after": 3}
    for name, contrast in least.items():
        for ground in ("page", "card"):
            light, dark = sorted((_luminance(colours[name]), _luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= contrast, f"{name} on {ground}"

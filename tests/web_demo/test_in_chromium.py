"""The page in a browser, used as a person would: the same classes as in Python."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from browser import CHROMIUM, MISSING, Page, chromium
from PIL import Image
from site_server import CHECKPOINT, CLASSES, IMAGES, MEAN, STD, served, web_demo

from trp_export import Options, compress
from trp_export.inputs.images import load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.options import Benchmark, Bundle, Calibration

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason=MISSING)]


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as url:
        yield url


@pytest.fixture
def page(window: Page, address: str) -> Page:
    """The site, loaded afresh: what one test does to the page, or where it goes, is nothing to the next."""
    window.resize(1100, 900)
    window.open("about:blank")
    window.problems.clear()
    window.open(address)
    _finished(window, 1)
    return window


def _finished(page: Page, tasks: int | None = None) -> int:
    """Wait until so many tasks are done, or all that were begun; returns how many."""
    count = "Number(document.body.dataset.finished ?? 0)"
    page.wait_for(f"{count} >= {tasks}" if tasks else f"{count} > 0")
    return int(page.evaluate(count))


def _choose(page: Page, files: list[Path]) -> None:
    done = _finished(page)
    page.set_files("#images", files)
    _finished(page, done + 1)


def _pictures(folder: Path, pixels: np.ndarray) -> list[Path]:
    files = [folder / f"{index:03}.png" for index in range(len(pixels))]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    return files


def _probabilities(model: Path, folder: Path) -> np.ndarray:
    """What Python says of the images in a folder."""
    images = load_images(folder, Preprocessing(MEAN, STD), input_shape=(1, 3, 32, 32))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows = [session.run(None, {session.get_inputs()[0].name: one[None]})[0][0] for one in images.inputs]
    powers = np.exp(np.array(rows) - np.max(rows, axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _answers(page: Page) -> np.ndarray:
    """Of several pictures: images, models, (class, probability)."""
    rows = page.evaluate(
        "[...document.querySelectorAll('#several-body tr')].map((row) => "
        "[...row.cells].slice(1).map((cell) => [Number(cell.dataset.class), Number(cell.dataset.share)]))"
    )
    return np.array(rows)


def test_the_same_classes_as_in_python(page: Page, site: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    _choose(page, _pictures(tmp_path, pixels))
    found = _answers(page)
    assert found.shape == (64, 2, 2)
    for index, model in enumerate((site / "original.onnx", site / "bundle" / "model.onnx")):
        expected = _probabilities(model, tmp_path)
        np.testing.assert_array_equal(found[:, index, 0], expected.argmax(axis=1))
        np.testing.assert_allclose(found[:, index, 1], expected.max(axis=1), atol=1e-3)
    assert page.text("#agreement") == "Same class on 64 of 64 images."
    assert page.problems == []


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_fewer_bits_answer_as_in_python(precision: str, page: Page, pixels: np.ndarray, tmp_path: Path) -> None:
    """Bundles in other precisions, on a page that is there already."""
    calibration = Calibration(IMAGES, count=128) if precision == "int8" else None
    asked = Options(calibration=calibration, precision=precision, benchmark=Benchmark(run=False))  # type: ignore[arg-type]
    report = compress(CHECKPOINT, replace(asked, bundle=Bundle(tmp_path / "bundle")))
    assert report.forms is not None
    assert report.forms.chosen.precision == precision
    web_demo.build(tmp_path / "bundle", tmp_path / "site")
    (tmp_path / "images").mkdir()
    with served(tmp_path / "site") as url:
        page.open(url)
        _finished(page, 1)
        _choose(page, _pictures(tmp_path / "images", pixels))
        found = _answers(page)
    expected = _probabilities(tmp_path / "bundle" / "model.onnx", tmp_path / "images")
    own = expected[np.arange(len(expected)), found[:, 0, 0].astype(int)]
    # In 8 bits a value between two steps goes up on one processor and down on another, which can turn a near tie.
    apart = 0.15 if precision == "int8" else 1e-3
    np.testing.assert_allclose(own, found[:, 0, 1], atol=apart)
    assert (expected.max(axis=1) - own).max() < apart
    assert page.problems == []


def test_one_image_beside_the_original(page: Page, pixels: np.ndarray, tmp_path: Path) -> None:
    _choose(page, _pictures(tmp_path, pixels[:1]))
    assert page.evaluate("document.querySelector('#several').hidden")
    assert page.text("#verdict").startswith("Both say cat. The compressed network")
    latencies = page.evaluate("[...document.querySelectorAll('.latency')].map((one) => parseFloat(one.textContent))")
    assert len(latencies) == 2
    assert min(latencies) > 0
    assert page.evaluate("document.querySelectorAll('.model li').length") == 10
    assert page.evaluate("[document.querySelector('#seen').width, document.querySelector('#seen').height]") == [32, 32]
    assert page.text("h1") == "resnet20-trp-spatial-2.84x, compressed"
    assert "as expected" in page.text("#facts")
    assert "what the bundle was made from" in page.text("#facts")
    assert page.problems == []


def test_what_is_no_image_is_said_and_the_next_one_works(page: Page, pixels: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    _choose(page, [tmp_path / "notes.txt"])
    assert page.text("#error") == "notes.txt is not an image that this browser can read."
    _choose(page, _pictures(tmp_path, pixels[3:4]))
    assert page.evaluate("document.querySelector('#error').hidden")
    assert page.text("#verdict").startswith("Both say frog")


def test_a_photo_is_decoded_as_pillow_decodes(page: Page, pixels: np.ndarray, tmp_path: Path) -> None:
    large = Image.fromarray(pixels[3]).resize((300, 200), Image.Resampling.BICUBIC)
    large.save(tmp_path / "photo.jpg", quality=90)
    data = base64.b64encode((tmp_path / "photo.jpg").read_bytes()).decode()
    found = page.evaluate(
        "import('./sources.mjs').then(async ({fromFile}) => {"
        f"const bytes = Uint8Array.from(atob('{data}'), (char) => char.charCodeAt(0));"
        "const {data} = await fromFile(new File([bytes], 'photo.jpg')); return Array.from(data); })"
    )
    browser = np.array(found, dtype=int).reshape(200, 300, 4)
    pillow = np.asarray(Image.open(tmp_path / "photo.jpg").convert("RGB"), dtype=int)
    assert (browser[:, :, 3] == 255).all()
    assert abs(browser[:, :, :3] - pillow).max() <= 2, "levels of 255"


def test_a_drawing_is_scaled_as_python_scales(page: Page, site: Path, tmp_path: Path) -> None:
    page.click("[value=drawing]")
    x, y = page.place("#board")
    done = _finished(page)
    page.mouse("mousePressed", x - 80, y - 40)
    for step in range(-80, 90, 20):
        page.mouse("mouseMoved", x + step, y + step / 3)
    page.mouse("mouseReleased", x + 80, y + 27)
    _finished(page, done + 1)
    _compare_board(page, site, tmp_path)


def test_drawing_by_keys_alone(page: Page, site: Path, tmp_path: Path) -> None:
    page.click("[value=drawing]")
    page.click("#fill")
    page.evaluate("document.querySelector('#pen').value = '#d02020'")
    page.evaluate("document.querySelector('#board').focus()")
    before = page.evaluate("document.querySelector('#board').toDataURL()")
    done = _finished(page)
    for key in (" ", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", " "):
        page.press(key)
    _finished(page, done + 1)
    assert page.evaluate("document.querySelector('#board').toDataURL()") != before
    _compare_board(page, site, tmp_path)


def _compare_board(page: Page, site: Path, folder: Path) -> None:
    """The first of five classes of each model, and its share, as Python finds them for what is on the board."""
    drawn = page.evaluate("document.querySelector('#board').toDataURL('image/png')")
    (folder / "board.png").write_bytes(base64.b64decode(drawn.split(",")[1]))
    for index, model in enumerate((site / "original.onnx", site / "bundle" / "model.onnx")):
        expected = _probabilities(model, folder)[0]
        name, share = page.text(f".model:nth-child({index + 1}) li").split("\n")[:2]
        assert name == CLASSES[int(expected.argmax())]
        assert float(share.removesuffix(" %")) == pytest.approx(100 * expected.max(), abs=0.1)


def test_another_bundle(page: Page, bundle: Path, tmp_path: Path) -> None:
    digest = json.loads(page.evaluate("fetch('site.json').then((answer) => answer.text())"))["digest"]
    files = [bundle / "manifest.json", bundle / "model.onnx"]
    page.evaluate("document.querySelector('details').open = true")

    def load(expected: str, chosen: list[Path]) -> None:
        page.set_files("#bundle-files", chosen)
        page.evaluate(f"document.querySelector('#digest').value = '{expected}'")
        done = _finished(page)
        page.click("#another button")
        _finished(page, done + 1)

    load("0" * 64, files)
    assert "this is another bundle" in page.text("#error")
    load("", files[:1])
    assert page.text("#error") == "model.onnx is missing: choose it together with manifest.json."
    load("", files[1:])
    assert "There is no manifest.json" in page.text("#error")
    load("", files)
    assert "who made them is not known" in page.text("#facts")
    load(digest.upper(), files)
    assert "as expected" in page.text("#facts")
    assert page.problems == []
    manifest = json.loads(files[0].read_text(encoding="utf-8"))
    manifest["provenance"]["source"]["name"] = "<img src=x onerror=alert(1)>"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    load("", [tmp_path / "manifest.json", files[1]])
    assert page.text("h1") == "<img src=x onerror=alert(1)>, compressed", "a name is text"
    manifest["inputs"][0]["type"] = "int64"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    load("", [tmp_path / "manifest.json", files[1]])
    assert page.text("#error") == "This page feeds images of float32; the model wants int64 (?, 3, 32, 32)."
    assert page.problems == []


@pytest.mark.parametrize("damaged", ["bundle/model.onnx", "bundle/manifest.json", "original.onnx"])
def test_a_changed_byte_is_refused(page: Page, site: Path, tmp_path: Path, damaged: str) -> None:
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    written = bytearray((copy / damaged).read_bytes())
    written[len(written) // 2] ^= 1
    (copy / damaged).write_bytes(written)
    with served(copy) as url:
        page.open(url)
        _finished(page, 1)
        assert "digest" in page.text("#error")
        assert page.evaluate("document.querySelector('#images').disabled")
        assert page.evaluate("document.querySelector('#result').hidden")


@pytest.mark.parametrize("width", [320, 390, 1100])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_sticks_out(page: Page, width: int, dark: bool) -> None:
    page.resize(width, 800, dark=dark)
    page.evaluate("document.querySelector('details').open = true")
    for panel in ("drawing", "camera", "files"):
        page.click(f"[value={panel}]")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(19, 23, 27)" if dark else "rgb(255, 255, 255)")


def test_every_control_has_a_name_and_is_reached_by_tab(page: Page) -> None:
    page.click("[value=drawing]")
    page.evaluate("document.querySelector('details').open = true")
    controls = {"button", "radio", "slider", "textbox", "ColorWell", "link", "DisclosureTriangle", "img", "image"}
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    found = [node for node in nodes if not node["ignored"] and node["role"]["value"] in controls]
    assert len(found) >= 9
    assert [node["role"] for node in found if not node.get("name", {}).get("value")] == []
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(30):
        page.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.localName"))
    assert {"board", "pen", "pen-width", "fill", "classify", "summary", "bundle-files", "digest"} <= reached


def test_a_camera(site: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    _film(tmp_path / "frog.y4m", pixels[3])
    flags = (
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={tmp_path / 'frog.y4m'}",
    )
    with served(site) as url, chromium(tmp_path, *flags) as page:
        page.open(url)
        _finished(page, 1)
        page.click("[value=camera]")
        page.click("#camera-switch")
        page.wait_for("document.querySelector('#how').textContent.includes('last 30 frames')")
        assert page.text("#verdict").startswith("Both say frog")
        page.set_files("#images", _pictures(tmp_path, pixels[:1]))  # ends the camera
        _finished(page, 3)
        assert page.text("#verdict").startswith("Both say cat")
        assert page.text("#camera-switch") == "Start the camera"
        assert page.problems == []


def _film(path: Path, image: np.ndarray) -> None:
    """A film of one picture, 256 x 256, uncompressed."""
    frame = Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC).convert("YCbCr")
    luma, blue, red = (np.asarray(band) for band in frame.split())
    data = luma.tobytes() + blue[::2, ::2].tobytes() + red[::2, ::2].tobytes()
    path.write_bytes(b"YUV4MPEG2 W256 H256 F30:1 Ip A1:1 C420jpeg\n" + 2 * (b"FRAME\n" + data))

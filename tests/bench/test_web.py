"""WebAssembly in Chromium, and in Node."""

from __future__ import annotations

import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import onnx
import psutil
import pytest

from trp_export.bench import Comparison, Settings, compare
from trp_export.bench.devices import open_device
from trp_export.bench.devices.base import Start, cached
from trp_export.bench.devices.web import FILES, PageRunner, WebDevice, browser, missing_web
from trp_export.bench.models import read_cases
from trp_export.errors import DeviceError

NO_FILES = "onnxruntime-web is missing: python tools/setup_web.py"
no_files = not all((cached("web") / name).is_file() for name in FILES)
needs_browser = pytest.mark.skipif(
    no_files or not browser(), reason=NO_FILES if no_files else "needs Chromium: apt-get install chromium"
)
needs_node = pytest.mark.skipif(
    no_files or not shutil.which("node"), reason=NO_FILES if no_files else "needs Node: apt-get install nodejs"
)


@needs_browser
def test_chromium(conv_net: Path, no_process_left: None) -> None:
    found = compare([conv_net, conv_net], device="web", budget_s=1, processes=1)
    assert found.environment.provider == "wasm"
    assert found.environment.onnxruntime.startswith("web 1.")
    assert "Chrom" in found.environment.system
    for one in found.measurements:
        assert one.samples
        assert one.deviation is not None
        assert one.deviation.relative_l2 <= one.deviation.limit


@pytest.mark.slow
@needs_browser
def test_nothing_is_left_behind(conv_net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="trp.") as folder:  # short, as a browser's socket lies in it
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        compare([conv_net], device="web", budget_s=0.5, processes=1)
        left = {path.name for path in Path(folder).iterdir()}
        assert left <= {".ses"}  # onnxruntime's own, on this computer


@pytest.mark.slow
@needs_browser
def test_threads_are_really_used(conv_net: Path) -> None:
    assert compare([conv_net], device="web", threads=2, budget_s=0.5, processes=1).environment.threads == 2


@pytest.mark.slow
@needs_browser
def test_any_type_of_input(any_types: Path) -> None:
    shapes = {"h": (2, 5), "x": (2, 4)}
    try:
        found = compare([any_types], device="web", budget_s=0.5, processes=1, shapes=shapes)
    except DeviceError as error:
        assert "float16" in str(error) or "kernel" in str(error)  # noqa: PT017 - wasm has no Neg for half precision
        return
    assert found.measurements[0].deviation is not None


@pytest.mark.slow
@needs_browser
def test_a_browser_that_dies(conv_net: Path, no_process_left: None) -> None:
    seen: list[Comparison] = []

    def kill(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare([conv_net], device="web", budget_s=5, progress=kill, checkpoint=seen.append)
    assert seen[-1].measurements[0].samples
    with open_device("web", Settings(timeout_s=60)) as device:
        device.stage(read_cases([conv_net]))
        runner = device.start(0, Start(1, (), "CPUExecutionProvider", 60))
        assert isinstance(runner, PageRunner)
        for process in psutil.Process(runner._process.pid).children(recursive=True):
            process.kill()
        runner._process.kill()
        with pytest.raises(DeviceError, match="the browser ended with status"):
            runner.run(1, 1)
        runner.close()


@needs_browser
def test_the_server_tells_strangers_nothing(conv_net: Path) -> None:
    with open_device("web", Settings()) as device:
        assert isinstance(device, WebDevice)
        device.stage(read_cases([conv_net]))
        host = f"http://127.0.0.1:{device._server.server_address[1]}"
        secret = device._server.secret
        for path in ("/", "/x/1/model.onnx", f"/{secret}/1/../../etc/passwd", f"/{secret}/ort/package.json"):
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                urllib.request.urlopen(host + path, timeout=10)
            refused.value.close()


@pytest.mark.slow
@needs_node
def test_node(conv_net: Path, tmp_path: Path, no_process_left: None) -> None:
    external = tmp_path / "external"
    external.mkdir()
    onnx.save(
        onnx.load(conv_net), external / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    found = compare([conv_net, external / "net.onnx"], device="web:node", budget_s=1, processes=1)
    assert found.environment.device == "web:node"
    assert all(process.peak_bytes > 0 for one in found.measurements for process in one.processes)
    with pytest.raises(DeviceError, match="web:node runs one thread"):
        compare([conv_net], device="web:node", threads=2)


@needs_node
def test_errors_of_the_page_come_back(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "strange" : 1]>
net (float[1] x) => (float[1] y) { y = strange.Unheard(x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "strange.onnx")
    with open_device("web:node", Settings()) as device:
        device.stage(read_cases([tmp_path / "strange.onnx"]))
        with pytest.raises(DeviceError, match="Unheard"):
            device.start(0, Start(1, (), "CPUExecutionProvider", 30))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert "tools/setup_web.py" in missing_web(Settings(web=tmp_path)) or "Chromium" in missing_web(Settings())
    if not no_files:
        with pytest.raises(DeviceError, match="web or web:node"), open_device("web:firefox", Settings()):
            pass

"""Build a page that runs a bundle in the browser, the original beside the compressed model.

    python tools/web_demo.py BUNDLE -o site/ [--original MODEL] [--serve [PORT]]

BUNDLE is what `trp-export --bundle` wrote; it is checked before anything is copied. --original takes the ONNX file or
the checkpoint that was exported. The site is static: copy it to any host. onnxruntime-web comes from npm at build time
and must have the digests below. --serve shows the site on this computer with the headers that allow threads.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import shutil
import tempfile
from pathlib import Path

import click
from setup_web import VERSION, fetch

from trp_export.bench.devices.base import cached
from trp_export.errors import DeviceError, OutputError, TrpError
from trp_export.graph.metadata import strip_traces
from trp_export.graph.model_files import save_model
from trp_export.load import load
from trp_export.options import LoadOptions
from trp_export.ship.verify import verify_bundle

PAGE = Path(__file__).with_name("web_demo")
# onnxruntime-web 1.30.0, as npm had it.
RUNTIME = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
# What every site holds besides the page.
ALWAYS = {"site.json", "ort", "bundle"}
# With these headers a browser allows threads and a finer clock.
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="SITE")
@click.option("--original", type=click.Path(path_type=Path), metavar="MODEL", help="The ONNX file or checkpoint.")
@click.option("--serve", "port", type=int, is_flag=False, flag_value=8000, metavar="PORT", help="Show it here.")
def main(bundle: Path, output: Path, original: Path | None, port: int | None) -> None:
    """Build a page that runs BUNDLE in the browser, the original beside the compressed model."""
    try:
        build(bundle, output, original)
    except TrpError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"wrote {output}")
    if port is not None:
        serve(output, port)


def build(bundle: Path, site: Path, original: Path | None = None) -> None:
    """Write the site completely or not at all. An earlier site in its place is replaced, but nothing else.

    Raises LoadError for a bundle or an original that cannot be used, OutputError, DeviceError.
    """
    _require_ours(site)
    try:
        site.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{site.name}.", dir=site.parent) as folder:
            made = Path(folder) / "site"
            shutil.copytree(PAGE, made)
            copy_runtime(made / "ort")
            described = {
                "digest": copy_bundle(bundle, made / "bundle"),
                "original": copy_original(original, made / "original.onnx") if original else None,
            }
            (made / "site.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            _replace(site, made, Path(folder) / "older")
    except OSError as error:
        raise OutputError(f"{site} cannot be written: {error}.") from error


def _require_ours(site: Path) -> None:
    """Raise OutputError where the place holds anything that this tool did not make."""
    if not site.exists():
        return
    names = {path.name for path in site.iterdir()} if site.is_dir() else set()
    if not names >= ALWAYS:
        raise OutputError(f"{site} exists and is not a site of this tool; choose another folder.")
    if foreign := sorted(names - ALWAYS - {"original.onnx"} - {path.name for path in PAGE.iterdir()}):
        raise OutputError(
            f"{site} holds {foreign[0]}, which this tool did not make; move it, or choose another folder."
        )


def _replace(site: Path, made: Path, aside: Path) -> None:
    """Move the new site into its place. If that fails, the older one comes back."""
    if site.exists():
        site.rename(aside)
    try:
        made.rename(site)
    except OSError:
        if aside.exists():
            aside.rename(site)
        raise


def copy_runtime(folder: Path) -> None:
    """Copy onnxruntime-web from the cache of trp-bench, or fetch it from npm. Only the pinned files are accepted."""
    folder.mkdir()
    here = cached("web")
    if unlike := unlike_pinned(here):
        fetch(folder, VERSION)
        here, unlike = folder, unlike_pinned(folder)
    if unlike:
        raise DeviceError(f"{unlike[0]} of onnxruntime-web {VERSION} does not have the pinned digest.")
    if here != folder:
        for name in RUNTIME:
            shutil.copy(here / name, folder / name)


def unlike_pinned(folder: Path) -> list[str]:
    """The files of onnxruntime-web that the folder lacks, or holds with another digest."""
    return [
        name for name, pinned in RUNTIME.items() if not (folder / name).is_file() or sha256(folder / name) != pinned
    ]


def copy_bundle(bundle: Path, folder: Path) -> str:
    """Check a bundle, copy it, and check the copy. Returns its digest."""
    digest = verify_bundle(bundle).digest
    shutil.copytree(bundle, folder, symlinks=True)
    return verify_bundle(folder, digest).digest


def copy_original(original: Path, target: Path) -> dict[str, str | int]:
    """Write the original as one ONNX file, exported if it is not one. Returns what the page needs to know."""
    source = load(original, LoadOptions())
    if source.path is not None and source.bytes == source.path.stat().st_size:
        shutil.copy(source.path, target)
    else:
        strip_traces(source.model)
        save_model(source.model, target)
    return {
        "path": target.name,
        "sha256": sha256(target),
        "bytes": target.stat().st_size,
        "made_from": sha256(original),
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Static files with the headers that isolate the page."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

    def end_headers(self) -> None:
        for name, value in ISOLATION.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def serve(site: Path, port: int) -> None:
    """Show the site on this computer until Ctrl-C."""
    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://localhost:{port}  (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()

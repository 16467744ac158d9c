"""What the tests of the page share: the network they use, and a server for a site."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import web_demo

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "models_zoo" / "weights" / "resnet20-trp-spatial-2.84x.pt"
IMAGES = ROOT / "models_zoo" / "images" / "cifar10-256.npz"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a site while it is served."""
    handler = functools.partial(web_demo.Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()

"""A bundle in a web page: export, check, and write a page that classifies images in the browser.

    python examples/bundle_in_page.py out/
    python -m http.server --directory out/site      # then open http://localhost:8000

The page gets onnxruntime-web from a public CDN and checks every byte of the bundle against the digest written into it.
`tools/web_demo.py` builds a fuller page that needs no CDN, scales images exactly as Python does, and runs the original
beside the result.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from trp_export import Benchmark, Bundle, Images, Options, compress, verify_bundle

ZOO = Path(__file__).resolve().parents[1] / "models_zoo"
SAMPLES = 8

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>A bundle in a page</title>
<p>Click an image, or choose a file: <input type="file" accept="image/*">
<p>{samples}
<p><output>loading</output>
<script type="module">
import * as ort from "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/ort.wasm.bundle.min.mjs";
import {{ load, prepare }} from "./bundle/load.mjs";

const output = document.querySelector("output");
const {{ session, manifest }} = await load(ort, "./bundle/", "{digest}");
const [, , height, width] = manifest.inputs[0].shape;
output.textContent = "ready";

async function classify(picture) {{
  const canvas = new OffscreenCanvas(width, height).getContext("2d");
  canvas.drawImage(picture, 0, 0, width, height);
  const input = prepare(ort, canvas.getImageData(0, 0, width, height), manifest);
  const outputs = await session.run({{ [manifest.inputs[0].name]: input }});
  const scores = outputs[manifest.outputs[0].name].data;
  const best = scores.indexOf(Math.max(...scores));
  output.textContent = manifest.classes?.[best] ?? `class ${{best}}`;
}}

for (const picture of document.images) picture.onclick = () => classify(picture);
document.querySelector("input").onchange = async (event) => classify(await createImageBitmap(event.target.files[0]));
</script>
"""


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    bundle, site = folder / "bundle", folder / "site"
    report = compress(
        ZOO / "weights" / "resnet20-trp-spatial-2.84x.pt",  # brings its plan, its classes and its mean and std along
        Options(
            images=Images(ZOO / "images" / "cifar10-256.npz"),
            benchmark=Benchmark(run=False),
            bundle=Bundle(bundle),
        ),
    )
    verified = verify_bundle(bundle, report.digest)
    print(f"{len(verified.manifest.files)} files, {verified.bytes:,} bytes, digest {verified.digest}")

    shutil.copytree(bundle, site / "bundle", dirs_exist_ok=True)
    images = np.load(ZOO / "images" / "cifar10-256.npz")["images"][:SAMPLES]
    names = [f"sample{index}.png" for index in range(len(images))]
    for name, pixels in zip(names, images, strict=True):
        Image.fromarray(pixels).save(site / name)
    samples = " ".join(f'<img src="{name}" width="64" height="64" alt="sample">' for name in names)
    (site / "index.html").write_text(PAGE.format(digest=verified.digest, samples=samples), encoding="utf-8")
    print(f"wrote {site / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

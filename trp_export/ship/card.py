"""The model card: what a person should know before shipping the bundle, as Markdown.

Names and notes come from files that nobody vouches for: what Markdown or HTML would read as more than text is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from trp_export.command_line import command_line
from trp_export.report.document import Report
from trp_export.report.page.markup import plain
from trp_export.report.page.summary import compared
from trp_export.report.wording import headline, shorten
from trp_export.ship.manifest import Manifest, ManifestPreprocessing, Tensor

_LONGEST = 600
_MOST_NAMED = 20


def make_card(manifest: Manifest, report: Report) -> str:
    """The card as text."""
    parts = (
        f"# {_text(report.source.name)}",
        _text(headline(report)),
        _table(("", "before", "after", "ratio"), ((r.what, r.before, r.after, r.ratio) for r in compared(report))),
        "## Use",
        _USE,
        _table(("", "name", "shape", "type"), _tensors(manifest)),
        _preprocessing(manifest.preprocessing),
        _classes(manifest.classes),
        "## How it was made",
        f"```\n{shorten(plain(command_line(report.source, report.options)), 4000)}\n```",
        _origin(manifest),
        "Every layer, what became of it and why: [report.html](report.html). What was measured, and where, stands in "
        "manifest.json under `evidence`.",
        *(("## Notes", "\n".join(f"- {_text(note)}" for note in report.notes)) if report.notes else ()),
        "## Limits",
        _LIMITS,
    )
    return "\n\n".join(part for part in parts if part) + "\n"


_USE = """\
`load.py`, `load.mjs` and `Load.kt` check the manifest's digest and the model's sha256 before the model is opened. Keep
the digest, which `trp-export` printed, in your app's source: a digest beside the bundle protects nothing.

```
session, manifest = load("DIR", digest="...")                       # Python: numpy, onnxruntime
const { session, manifest } = await load(ort, "DIR/", "...")         // JavaScript: onnxruntime-web
val (session, manifest) = load(environment, File("DIR"), "...")      // Kotlin: onnxruntime, org.json
```"""

_LIMITS = """\
Accuracy and latency hold for the images and the machine they were measured on, and for nothing else; where a figure is
missing it was not measured. What the original gets wrong, this model gets wrong, too."""


def _tensors(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for what, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors[:_MOST_NAMED]:
            yield what, tensor.name, _shape(tensor), tensor.type


def _shape(tensor: Tensor) -> str:
    return " x ".join("any" if extent is None else str(extent) for extent in tensor.shape) or "scalar"


def _preprocessing(steps: ManifestPreprocessing | None) -> str:
    if steps is None:
        return "How inputs are prepared is not known here: feed what the original takes."
    channels = {"RGB": "red, green, blue", "L": "grey"}[steps.channels]
    size = "as they are"
    if steps.crop is not None:
        cut = f"{steps.crop[0]} x {steps.crop[1]} cut from the centre"
        size = {
            None: cut,
            "cover": f"scaled to just cover {steps.crop[0]} x {steps.crop[1]}, which are cut from the centre",
        }.get(
            steps.resize if not isinstance(steps.resize, int) else "", f"shorter side scaled to {steps.resize}, {cut}"
        )
    elif steps.resize is not None:
        size = f"shorter side scaled to {steps.resize}"
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (steps.mean, steps.std))
    return f"Images ({channels}, 8 bits): {size}; pixels / 255, minus {mean}, over {std}; layout {steps.layout}."


def _classes(names: tuple[str, ...] | None) -> str | None:
    if names is None:
        return None
    more = f" and {len(names) - _MOST_NAMED} more (manifest.json)" if len(names) > _MOST_NAMED else ""
    return f"Classes, in the order of the outputs: {', '.join(map(_text, names[:_MOST_NAMED]))}{more}."


def _origin(manifest: Manifest) -> str:
    source = manifest.provenance["source"]["files"]
    read = [f"- `{_code(name)}`, sha256 `{file['sha256']}`" for name, file in source.items()]
    licence = manifest.provenance["licence"]
    said = _text(licence) if licence else "the source names none; ask whoever made it before you ship"
    ort = manifest.ort
    tied = (
        f"- `{ort.model}` is tied to onnxruntime {ort.onnxruntime} and later ones that still read it, and laid out for "
        f"{ort.target}; where neither is sure, ship `{manifest.model}`."
        if ort
        else None
    )
    precision = f"- precision {manifest.precision}"
    return "\n".join(line for line in (*read, precision, f"- licence: {said}", tied) if line)


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = ("| " + " | ".join(map(_text, row)) + " |" for row in rows)
    return "\n".join((f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines))


def _text(text: str) -> str:
    """Text that is nothing but text in Markdown."""
    one_line = shorten(plain(text), _LONGEST).replace("\n", " ")
    return re.sub(r"([\\`*_\[\]<>|#&!])", r"\\\1", one_line)


def _code(text: str) -> str:
    return shorten(plain(text), _LONGEST).replace("`", "'").replace("\n", " ")

"""The model card of a bundle, as Markdown: what a person should know before shipping the model.

Names and notes come from files that nobody vouches for, so everything that Markdown or HTML could interpret is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from trp_export.command_line import command_line
from trp_export.inputs.preprocessing import SCALE
from trp_export.report.document import Report
from trp_export.report.page.summary import compared
from trp_export.report.wording import headline, shorten
from trp_export.ship.manifest import Manifest, ManifestPreprocessing, Tensor
from trp_export.system.text import plain

_LONGEST = 600
_LONGEST_COMMAND = 4000
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
        _code_block(command_line(report.source, report.options)),
        _origin(manifest),
        "[report.html](report.html) shows every layer, what became of it and why. manifest.json holds the measurements "
        "and where they were made under `evidence`.",
        *(("## Notes", "\n".join(f"- {_text(note)}" for note in report.notes)) if report.notes else ()),
        "## Limits",
        _LIMITS,
    )
    return "\n\n".join(part for part in parts if part) + "\n"


_USE = """\
`load.py`, `load.mjs` and `Load.kt` check the manifest's digest and the model's sha256 before they open the model. Keep
the digest, which `trp-export` printed, in your app's source: a digest beside the bundle protects nothing.

```
session, manifest = load("DIR", digest="...")                       # Python: numpy, onnxruntime
const { session, manifest } = await load(ort, "DIR/", "...")         // JavaScript: onnxruntime-web
val (session, manifest) = load(environment, File("DIR"), "...")      // Kotlin: onnxruntime, org.json
```"""

_LIMITS = """\
Accuracy and latency hold only for the images and the machine they were measured on; a figure that is missing was not
measured. This model repeats the mistakes of the original."""


def _tensors(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for what, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors[:_MOST_NAMED]:
            yield what, tensor.name, _shape(tensor), tensor.type


def _shape(tensor: Tensor) -> str:
    return " x ".join("any" if extent is None else str(extent) for extent in tensor.shape) or "scalar"


def _preprocessing(steps: ManifestPreprocessing | None) -> str:
    if steps is None:
        return "How inputs are prepared is unknown: feed what the original takes."
    channels = {"RGB": "red, green, blue", "BGR": "blue, green, red", "L": "grey"}[steps.channels]
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (steps.mean, steps.std))
    scale = " / 255" if steps.scale == SCALE else f" x {steps.scale:g}"
    return (
        f"Images ({channels}, 8 bits): {_size(steps)}; pixels{scale}, minus {mean}, divided by {std}; "
        f"layout {steps.layout}."
    )


def _size(steps: ManifestPreprocessing) -> str:
    crop = f"{steps.crop[0]} x {steps.crop[1]}" if steps.crop else ""
    if steps.resize == "cover":
        return f"scaled to just cover {crop}, then cut to that from the centre"
    size = "original size"
    if isinstance(steps.resize, int):
        size = f"shorter side scaled to {steps.resize}"
    elif steps.resize is not None:
        size = f"resized as `--resize {steps.resize}` does (width x height)"
    return f"{size}, then {crop} cut from the centre" if crop else size


def _classes(names: tuple[str, ...] | None) -> str | None:
    if names is None:
        return None
    more = f" and {len(names) - _MOST_NAMED} more (manifest.json)" if len(names) > _MOST_NAMED else ""
    return f"Classes, in the order of the outputs: {', '.join(map(_text, names[:_MOST_NAMED]))}{more}."


def _origin(manifest: Manifest) -> str:
    files = manifest.provenance["source"]["files"]
    licence = manifest.provenance["licence"]
    lines = [f"- `{_code(name)}`, sha256 `{file['sha256']}`" for name, file in files.items()]
    lines.append(f"- precision {manifest.precision}")
    lines.append(f"- licence: {_text(licence) if licence else 'the source names none; ask its author before you ship'}")
    if manifest.ort is not None:
        lines.append(
            f"- `{manifest.ort.model}` needs onnxruntime {manifest.ort.onnxruntime} or a later one that reads it, "
            f"and is laid out for {manifest.ort.target}; if you are unsure of either, ship `{manifest.model}`."
        )
    return "\n".join(lines)


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = ("| " + " | ".join(map(_text, row)) + " |" for row in rows)
    return "\n".join((f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines))


def _text(text: str) -> str:
    """Text on one line, without anything that Markdown or HTML interprets."""
    return re.sub(r"([\\`*_\[\]<>|#&!~])", r"\\\1", _one_line(text))


def _code(text: str) -> str:
    return _one_line(text).replace("`", "'")


def _code_block(text: str) -> str:
    """Text as one line of a code block, within a fence that is longer than any run of backticks in the text."""
    line = _one_line(text, _LONGEST_COMMAND)
    longest_run = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest_run + 1)
    return f"{fence}\n{line}\n{fence}"


def _one_line(text: str, longest: int = _LONGEST) -> str:
    return shorten(plain(text), longest).replace("\n", " ")

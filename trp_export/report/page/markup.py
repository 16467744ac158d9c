"""HTML and SVG, escaped by construction: everything that is not `Markup` is escaped when it is inserted."""

from __future__ import annotations

import html

from trp_export.system.text import plain

_EMPTY = frozenset({"br", "meta", "path", "rect", "line", "circle", "polyline", "use"})


class Markup(str):
    """Text that needs no escaping. Only this module makes it."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """`text` for a page or an attribute, without control characters and characters that turn the writing direction."""
    return text if isinstance(text, Markup) else Markup(html.escape(plain(str(text))))


def join(*parts: object) -> Markup:
    """The parts one after the other, without those that are None."""
    return Markup("".join(escape(part) for part in parts if part is not None))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """One element. `class_` means class, `aria_label` means aria-label; an attribute that is None is left out."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY and not children:
        return Markup(f"<{tag}{named}/>")
    return Markup(f"<{tag}{named}>{join(*children)}</{tag}>")


def _number(value: object) -> object:
    """Coordinates are rounded to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value

"""HTML and SVG that escape by construction: whatever is not `Markup` already is escaped when it is put in."""

from __future__ import annotations

import html

_EMPTY = frozenset({"br", "meta", "path", "rect", "line", "circle", "polyline", "use"})


class Markup(str):
    """Text that may stand in a page as it is. Only this module and templates of our own make it."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """`text` for a page or an attribute, without characters that steer a terminal or turn the writing direction."""
    return text if isinstance(text, Markup) else Markup(html.escape(plain(str(text))))


def plain(text: str) -> str:
    """`text` with a question mark in place of every character that does not print; line ends stay."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def join(*parts: object) -> Markup:
    """Parts one after the other; None is left out."""
    return Markup("".join(escape(part) for part in parts if part is not None))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """One element. `class_` is class, `aria_label` is aria-label; an attribute that is None is left out."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY and not children:
        return Markup(f"<{tag}{named}/>")
    return Markup(f"<{tag}{named}>{join(*children)}</{tag}>")


def _number(value: object) -> object:
    """Coordinates to a tenth of a pixel: more cannot be seen."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value

"""Text from files and devices, made safe to print."""

from __future__ import annotations

from collections.abc import Sequence

# A screen of 80 columns has 24 lines.
_SCREEN_LINES = 20
_SCREEN_CHARACTERS = 1600
_END_LINES, _END_CHARACTERS = 4, 400


def plain(text: str, *, keep_lines: bool = True) -> str:
    """The text with a question mark for every character that is not printable, such as an escape or a bidi mark.

    Line ends stay, unless `keep_lines` is False; then they become question marks too.
    """
    return "".join(char if char.isprintable() or (keep_lines and char == "\n") else "?" for char in text)


def brief(value: object) -> str:
    """A value from a file or a device, in a line of at most 80 characters."""
    return plain(str(value)[:80], keep_lines=False)


def name_some(names: Sequence[str]) -> str:
    """The first three names and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def percent(share: float) -> str:
    """A share in percent without the sign: two digits, and all digits of whole numbers."""
    percentage = 100 * share
    return f"{percentage:,.0f}" if percentage >= 10 else f"{percentage:.2g}"


def screenful(text: str) -> str:
    """The text, with the middle left out if it is longer than a screen: a message ends with its remedy."""
    if len(text) > _SCREEN_CHARACTERS:
        head = text[: _SCREEN_CHARACTERS - _END_CHARACTERS]
        left_out = len(text) - _SCREEN_CHARACTERS
        text = f"{head} ... [{left_out:,} characters left out] ... {text[-_END_CHARACTERS:]}"
    lines = text.split("\n")
    if len(lines) > _SCREEN_LINES:
        first, last = lines[: _SCREEN_LINES - _END_LINES - 1], lines[-_END_LINES:]
        lines = [*first, f"[{len(lines) - len(first) - len(last)} lines left out]", *last]
    return "\n".join(lines)

"""An extension of griffe for docs/reference/python.md: fields made by trp_export.flags show their default and help."""

from __future__ import annotations

import html
import importlib
from dataclasses import Field, fields
from typing import Any

import griffe

# Calls that stand for a default, by the name of the function.
_DEFAULTS = {"group": "{0}()", "optional": "None", "one_of": "None"}


class Flags(griffe.Extension):
    """Replaces `flag("--macs", "Use ...", default=None)` by its default, and makes the help the field's docstring."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Called for each attribute that griffe finds in the source."""
        if not isinstance(attr.value, griffe.ExprCall):
            return
        function = str(attr.value.function)
        arguments = [str(argument) for argument in attr.value.arguments]
        if function in _DEFAULTS:
            attr.value = _DEFAULTS[function].format(*arguments)
        elif function == "flag":
            named = dict(argument.split("=", 1) for argument in arguments[2:])
            attr.value = named.get("default")
            option = _field_of(attr).metadata["flag"]
            text = f"{html.escape(option.help)} Command line: `{'/'.join(option.names)}`."
            attr.docstring = griffe.Docstring(text, parent=attr)


def _field_of(attr: griffe.Attribute) -> Field[Any]:
    """The field itself: the source may compose its help."""
    owner = getattr(importlib.import_module(attr.module.path), attr.path.split(".")[-2])
    return next(one for one in fields(owner) if one.name == attr.name)

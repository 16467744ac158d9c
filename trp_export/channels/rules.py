"""The rule of each operator, by its name."""

from __future__ import annotations

from collections.abc import Mapping

from trp_export.channels.analysis import Rule
from trp_export.channels.elementwise import ELEMENTWISE
from trp_export.channels.layers import LAYERS
from trp_export.channels.layout import LAYOUT
from trp_export.channels.resize import RESIZE

RULES: Mapping[str, Rule] = {**LAYERS, **ELEMENTWISE, **LAYOUT, **RESIZE}

"""The names of decompositions, short as users type them and long as plans hold them. Nothing is imported here."""

from __future__ import annotations

# One decomposition for every layer.
SHORT_NAMES = {
    "channel": "channel-wise",
    "spatial": "spatial-wise",
    "spatial-t": "spatial-wise-transposed",
    "pointwise": "pointwise-first",
    "decouple": "network-decoupling",
}
# What --scheme takes: sets of decompositions, of which each layer gets the best, or one of the above.
SCHEME_CHOICES = ("auto", "sliced", "all", *SHORT_NAMES)

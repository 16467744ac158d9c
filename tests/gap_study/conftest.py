"""The study lies in tools/gap_study, whose modules import each other by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "gap_study"))

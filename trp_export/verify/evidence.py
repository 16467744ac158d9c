"""What verification showed: of each layer, of the whole model, and what truncation did to the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trp_export.metrics.score import Score
from trp_export.runtime.distance import Distance
from trp_export.verify.calibration_images import CalibrationAgreement
from trp_export.verify.layers import LayerProof
from trp_export.verify.whole import WholeProof

# The words for what is fed to the models.
NOISE, CALIBRATION, GIVEN = "noise", "calibration images", "given inputs"


@dataclass(frozen=True, slots=True)
class Deviation:
    """How exact the rewrite is, and what truncation did to the outputs on which inputs.

    `rewrite` is the largest distance of any layer of the result from the layer with the product of its factors;
    `layers` holds each with what rounding explains, `whole` the same of the whole model, and `not_compared` what
    neither covers and why. `truncation` and `whole` are None where the whole model cannot be run; `how` says what was
    compared. `not_run` names the changed layers that `inputs` did not reach: `truncation` says nothing of them.
    `score` is the outcome of the evaluation, `seen` what calibration images show where there is none.
    """

    inputs: str
    how: str
    rewrite: Distance
    truncation: Distance | None
    score: Score | None = None
    seen: CalibrationAgreement | None = None
    layers: tuple[LayerProof, ...] = ()
    whole: WholeProof | None = None
    not_compared: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()

    @property
    def fed(self) -> str:
        """The inputs in a word or two: noise, calibration images, the given inputs."""
        return self.inputs.partition(",")[0]

    @property
    def is_within_rounding(self) -> bool:
        """True where truncation moved the outputs no further than rounding may move them."""
        if self.truncation is None or self.whole is None or self.not_run:
            return False
        on_images = self.seen.distance.relative_l2 if self.seen is not None else 0.0
        return max(self.truncation.relative_l2, on_images) <= self.whole.bound

    @property
    def unreached(self) -> tuple[str, ...]:
        """The changed layers that did not run where the outputs were compared: on the images of `seen`, or `inputs`."""
        images = {layer.name for layer in self.layers if self.seen is not None and CALIBRATION in layer.inputs}
        return tuple(name for name in self.not_run if name not in images)


@dataclass(frozen=True, slots=True)
class Files:
    """The models to compare. `dense` is the original in normal form, `products` the same with every changed kernel
    set to the product of its factors.

    `unrounded` holds the weights of `products` and `result` before they were rounded to float16; these files never run.
    Where channels were removed by images, `wide` is the original in normal form, before what reads them was refitted.
    """

    original: Path
    dense: Path
    products: Path
    result: Path
    unrounded: tuple[Path, Path] | None = None
    wide: Path | None = None

"""What is done to training images of any size, as one value that --augment writes and reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from trp_export.flags import InvalidOptionError


@dataclass(frozen=True, slots=True)
class Augmentation:
    """A random crop and flip, and what the other fields switch on. 0 is off.

    `crop` is the smallest share of the image's area that a crop may take (Szegedy et al. 2015), `jitter` the strength
    of changes in brightness, contrast and saturation, `randaugment` the magnitude of two random operations of 31
    (Cubuk et al. 2020), `mixup` and `cutmix` the alpha of blends and pasted patches between images of a batch (Zhang
    et al. 2018, Yun et al. 2019), `repeat` how often an image appears in a batch, each time augmented otherwise
    (Hoffer et al. 2020).
    """

    crop: float = 0.08
    jitter: float = 0.0
    randaugment: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeat: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("crop", 0.01, 1),
            ("jitter", 0, 1),
            ("randaugment", 0, 30),
            ("mixup", 0, 10),
            ("cutmix", 0, 10),
            ("repeat", 1, 64),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidOptionError(f"{name} must lie between {low:g} and {high:g}, not {getattr(self, name):g}.")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return bool(self.mixup or self.cutmix)


def read_augmentation(text: str) -> Augmentation:
    """The augmentation that a text such as `randaugment=9,mixup=0.2` names. Raises ValueError."""
    kinds: dict[str, type[float]] = {name: type(value) for name, value in asdict(Augmentation()).items()}
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.partition("=")
        if name not in kinds or name in values:
            raise ValueError(f"{part[:40]!r} is not one of {', '.join(f'{kind}=NUMBER' for kind in kinds)}.")
        try:
            values[name] = kinds[name](number)
        except ValueError:
            raise ValueError(f"{part[:40]!r}: {number[:20]!r} is not a {kinds[name].__name__}.") from None
    try:
        return Augmentation(**values)  # type: ignore[arg-type]
    except InvalidOptionError as error:
        raise ValueError(str(error)) from error


def write_augmentation(augmentation: Augmentation) -> str:
    """The reverse, without what is at its default."""
    return ",".join(
        f"{field.name}={getattr(augmentation, field.name):g}"
        for field in fields(augmentation)
        if getattr(augmentation, field.name) != field.default
    )

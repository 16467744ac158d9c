"""Second moments of the inputs of each layer, gathered by running the network batch by batch.

Moments are sums, so the moments of several runs or machines can be added.
Images are the independent samples: neighbouring positions of one image resemble each other. How much the moments of
single images scatter says how far the covariance is shrunk towards a multiple of the identity (Ledoit and Wolf, "A
well-conditioned estimator for large-dimensional covariance matrices", 2004, in closed form).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_export.calibration.layer_inputs import LayerInputs, Use, is_read
from trp_export.calibration.memory import images_to_sum, positions_to_read
from trp_export.calibration.patches import Array, Float32, Positions, sample_positions
from trp_export.calibration.triangles import diagonal, packed, rows, unpacked
from trp_export.errors import LoadError, OptionError
from trp_export.graph.sites import LocatedSite
from trp_export.inputs.arrays import read_arrays, require_plain_file
from trp_export.inputs.samples import Groups, Indices, Samples
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.metric import ErrorMetric
from trp_export.lowrank.site import Site
from trp_export.system.files import atomic_write
from trp_export.system.progress import Share

# Positions per entry of a patch: in measurements, more of them changed the factors no further.
SAMPLES_PER_ENTRY = 64
LEAST_SAMPLES = 2**15
# Layers of many groups, such as depthwise ones, have many small sums: together they need no more entries than this.
_MANY_ENTRIES = 2**27
# ResNet-20: 0.16 with its own preprocessing, 0.56 without mean and std, 43 on pixels of 0 to 255.
_FAR_FROM_TRAINING = 0.5
# The share of the identity in a covariance from which on the images say less than the weights.
_MOSTLY_WEIGHTS = 0.5
_FORMAT = "trp-moments-2"
_OTHER_NETWORK = "the moments are of different networks: their layers differ."
# Outer products of gradients are summed in single precision.
_ROUNDING_OF_GRADIENTS = 1e-4
# Beyond this, products of float32 values overflow in the network itself.
_HUGE = 1e18
# The number of the group that all images form where there are no others.
_ALL = -1


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The moments of one layer's inputs: the number of patches, their sum (group, d), the sum of their outer products.

    `half` holds the lower triangles of these, row by row (group, d (d + 1) / 2): most of the memory of calibration.
    `images` counts the images behind the patches; `scatter` (group,) is the sum over images
    of the squared Frobenius distance between the second moments of the image and those of all images. Without images,
    nothing is shrunk. `owed` (group, m, m) is what the answers owe to the output channels (`gradients`), None where
    that is unknown. `scales` are the parts of `count` and `total` that images of each scale make up: (scales,) and
    (scales, group, d), of one scale where all images are alike.
    """

    count: int
    total: Float64
    half: Float64
    images: int = 0
    scatter: Float64 | None = None
    owed: Float64 | None = None
    scales: tuple[Float64, Float64] | None = None

    @property
    def mean(self) -> Float64:
        return self.total / self.count

    @property
    def second(self) -> Float64:
        """(group, d, d), about zero."""
        second = unpacked(self.half)
        second /= self.count
        return second

    @property
    def covariance(self) -> Float64:
        """(group, d, d), about the mean."""
        return self.about(self.mean)

    def about(self, point: Float64) -> Float64:
        """Second moments (group, d, d) about a point (group, d)."""
        apart, moments = self.mean - point, self.second
        moments -= self.mean[:, :, None] * self.mean[:, None, :]
        moments += apart[:, :, None] * apart[:, None, :]
        return moments

    @property
    def between_scales(self) -> Float64:
        """(group, d, scales): the sum of their outer products is the part of the covariance that is between scales."""
        if self.scales is None:
            return np.zeros((*self.total.shape, 0))
        counts, totals = self.scales
        apart = totals / counts[:, None, None] - self.mean
        return np.asarray(np.moveaxis(apart * np.sqrt(counts / self.count)[:, None, None], 0, -1))

    @property
    def shrinkage(self) -> Float64:
        """The share of the identity in the covariance to use, per group: 1 where one image says nothing of others."""
        return self._shrinkage(self.covariance)

    def _shrinkage(self, covariance: Float64) -> Float64:
        if self.scatter is None:
            return np.zeros(len(self.total))
        if self.images < 2:
            return np.ones(len(self.total))
        size = covariance.shape[1]
        spread = np.einsum("gdd->g", covariance) / size
        apart = np.einsum("gde,gde->g", covariance, covariance) - size * spread**2
        noise = self.scatter / self.images**2
        return np.asarray(np.where(apart > noise, noise / np.maximum(apart, 1e-300), 1.0))

    def shrunk(self, *, centred: bool) -> Float64:
        """The covariance (group, d, d), shrunk; about zero unless `centred`."""
        result = self.covariance
        share = self._shrinkage(result)
        spread = np.einsum("gdd->g", result) / result.shape[1]
        result *= (1 - share)[:, None, None]
        np.einsum("gdd->gd", result)[...] += (share * spread)[:, None]
        if not centred:
            result += self.mean[:, :, None] * self.mean[:, None, :]
        return result

    def metric(self, *, centred: bool) -> ErrorMetric:
        """The metric in which factors are found."""
        return ErrorMetric(self.shrunk(centred=centred), self.owed)

    def __add__(self, other: Moments) -> Moments:
        scatter = None
        if self.scatter is not None and other.scatter is not None:
            scatter = self.scatter + other.scatter
        owed = [moments.owed for moments in (self, other) if moments.owed is not None]
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.half + other.half,
            self.images + other.images,
            scatter,
            sum(owed[1:], owed[0]) if owed else None,
            _merged(self, other),
        )


def _merged(one: Moments, other: Moments) -> tuple[Float64, Float64] | None:
    """The scales of both together: those of equal place are one where both have as many."""
    if one.scales is None and other.scales is None:
        return None
    parts = [own.scales or (np.array([float(own.count)]), own.total[None]) for own in (one, other)]
    (counts, totals), (others, more) = parts
    if len(counts) == len(others):
        return counts + others, totals + more
    return np.concatenate([counts, others]), np.concatenate([totals, more])


@dataclass(slots=True, eq=False)
class _Group:
    """Images whose values are of one size: the point that their sums are about (group, d), what a patch counts, the sum
    of that over patches, and the sum of the patches."""

    reference: Float64
    weight: float
    total: Float64
    mass: float = 0.0

    def about_reference(self, patches: Float32) -> Float32:
        """Patches (group, images, positions, d) less the point that sums are about."""
        return np.asarray(patches - self.reference.astype(np.float32)[:, None, None, :])


class MomentSums:
    """Running sums about a reference point near the mean, in double precision: nothing cancels at the end.

    Groups of images whose values differ by far in size count alike: each has a reference of its own, and its patches
    are weighed by the inverse of what the first of them measure. `mass` is the sum of these weights over patches.
    """

    def __init__(self, reference: Array) -> None:
        group, d = reference.shape
        self.reference = _rounded(reference)
        self._groups: dict[int, _Group] = {}
        self._count = self._images = 0
        self._outer = np.zeros((group, d, d))
        self._norms = np.zeros(group)

    @property
    def mass(self) -> float:
        return sum(own.mass for own in self._groups.values())

    def by_group(self, patches: Float32, groups: Groups | None) -> Iterator[tuple[Indices, _Group]]:
        """Which of the images (group, images, positions, d) belong to each group."""
        if groups is None:
            if not self._groups:
                self._groups[_ALL] = _Group(self.reference, 1.0, np.zeros_like(self.reference))
            yield slice(None), self._groups[_ALL]
            return
        for number in np.unique(groups).tolist():
            places = np.flatnonzero(groups == number)
            if number not in self._groups:
                own = patches[:, places].astype(np.float64)
                reference, size = _rounded(own.mean(axis=(1, 2))), float(np.square(own).mean())
                self._groups[number] = _Group(reference, 1.0 / size if size > 0 else 0.0, np.zeros_like(reference))
            yield places, self._groups[number]

    def add(self, patches: Float32, groups: Groups | None = None) -> None:
        """Patches (group, images, positions, d), and the groups of the images."""
        for places, own in self.by_group(patches, groups):
            self.add_to(own, own.about_reference(patches[:, places]))

    def add_to(self, own: _Group, patches: Float32) -> None:
        """Patches of one group about its reference. Of one image, sums over many may be in single precision."""
        group, images, positions, d = patches.shape
        self._count += images * positions
        self._images += images
        own.mass += own.weight * images * positions
        of_images = np.ones((1, positions), dtype=np.float32) @ patches
        own.total += own.weight * of_images.sum(axis=(1, 2), dtype=np.float64)
        if positions < d:
            exact = patches.astype(np.float64)
            flat = exact.reshape(group, -1, d)
            self._add_products(flat.transpose(0, 2, 1) @ flat, own.weight)
            # The norm of X^T X is that of X X^T.
            self._add_norms(exact @ exact.transpose(0, 1, 3, 2), positions, own.weight)
        else:
            for index in range(images):
                one = patches[:, index]
                product = one.transpose(0, 2, 1) @ one
                self._add_norms(product[:, None], positions, own.weight)
                self._add_products(product, own.weight)

    def _add_products(self, products: Array, weight: float) -> None:
        """Without a copy where patches count 1: the products of a large layer fill memory."""
        self._outer += products if weight == 1.0 else weight * products.astype(np.float64)

    def _add_norms(self, products: Array, positions: int, weight: float) -> None:
        """Squared norms of the second moments of single images, whose products are (group, images, *, *)."""
        norms = np.einsum("gipq,gipq->g", products, products, dtype=np.float64)
        self._norms += weight**2 * norms / positions**2

    def moments(self) -> Moments:
        """The moments about zero. Nothing can be added afterwards."""
        unit = self._count / self.mass if self.mass else 1.0
        self._outer *= unit
        self._norms *= unit**2
        mean_norm = np.einsum("gde,gde->g", self._outer, self._outer) / self._count**2
        scatter = np.maximum(self._norms - self._images * mean_norm, 0.0)
        groups = [own for _, own in sorted(self._groups.items()) if own.mass]
        half, totals = packed(self._outer), np.zeros((len(groups), *self.reference.shape))
        for own, whole in zip(groups, totals, strict=True):
            apart = unit * own.total
            whole += apart + unit * own.mass * own.reference
            for index, row in enumerate(rows(half)):
                row += apart[:, index, None] * own.reference[:, : index + 1]
                row += own.reference[:, index, None] * whole[:, : index + 1]
        scales = (unit * np.array([own.mass for own in groups]), totals) if len(groups) > 1 else None
        return Moments(self._count, totals.sum(axis=0), half, self._images, scatter, scales=scales)


def _rounded(reference: Array) -> Float64:
    return np.asarray(reference.astype(np.float32).astype(np.float64))


def gather_moments(
    model: ir.Model,
    located: Sequence[LocatedSite],
    samples: Samples,
    *,
    seed: int = 0,
    at_a_time: int | None = None,
    progress: Share = lambda share: None,
) -> dict[str, Moments]:
    """Site name -> moments of the inputs of all its uses, for every site whose inputs `LayerInputs` reads.

    `at_a_time` bounds the samples that are run together, for memory's sake.
    Raises LoadError for inputs that do not fit and for activations that are not finite, naming the layer.
    """
    inputs = LayerInputs(model, located)
    if not inputs.places:
        return {}
    rng = np.random.default_rng(seed)
    sums: dict[str, MomentSums] = {}
    done = 0
    for batch in samples.batches(at_a_time):
        for place, uses in inputs(batch.arrays):
            for patches, groups in sample_patches(uses, place.site, len(batch), len(samples), rng, batch.groups):
                if place.site.name not in sums:
                    sums[place.site.name] = MomentSums(patches.mean(axis=(1, 2), dtype=np.float64))
                sums[place.site.name].add(patches, groups)
        done += len(batch)
        progress(done / len(samples))
    calibrated = {place.site.name for place in inputs.places}
    # One after the other: sums and moments together would take twice the memory.
    return {name: sums.pop(name).moments() for name in list(sums) if name in calibrated}


def is_tapped(model: ir.Model, place: LocatedSite) -> bool:
    """False for refused sites, layers in the body of an If or a Loop, and constant inputs."""
    return is_read(place) and all(node.graph is model.graph for node in place.nodes)


def merge_moments(parts: Sequence[Mapping[str, Moments]]) -> dict[str, Moments]:
    """The sum of what several runs gathered. Raises OptionError where they are of different networks."""
    merged = dict(parts[0])
    for part in parts[1:]:
        if part.keys() != merged.keys() or not all(_of_one_layer(own, merged[name]) for name, own in part.items()):
            raise OptionError(_OTHER_NETWORK)
        merged = {name: merged[name] + moments for name, moments in part.items()}
    return merged


def _of_one_layer(own: Moments, other: Moments) -> bool:
    unlike = own.owed is not None and other.owed is not None and own.owed.shape != other.owed.shape
    return own.half.shape == other.half.shape and not unlike


def with_owed(moments: Mapping[str, Moments], owed: Mapping[str, Float64]) -> dict[str, Moments]:
    """The same with what the answers owe to output channels, by site name."""
    return {name: replace(own, owed=owed.get(name)) for name, own in moments.items()}


def require_layers(moments: Mapping[str, Moments], located: Sequence[LocatedSite]) -> None:
    """Raises OptionError for moments of other layers than these."""
    sites = {place.site.name: place.site for place in located}
    for name, own in moments.items():
        site = sites.get(name)
        if site is None or own.total.shape != (site.group, prod(site.kernel_shape[1:])):
            raise OptionError(_OTHER_NETWORK)


def save_moments(path: Path, moments: Mapping[str, Moments], counted: Collection[str] = ()) -> None:
    """As an .npz of float64 arrays, whole or not at all; the symmetric half is stored once. Raises OutputError.

    `counted` are the digests of the samples behind them.
    """
    arrays: dict[str, np.ndarray] = {"format": np.array(_FORMAT), "names": np.array(list(moments))}
    if counted:
        arrays["counted"] = np.array(sorted(counted), dtype=bytes)
    for index, own in enumerate(moments.values()):
        arrays[f"{index}.count"] = np.array(own.count)
        arrays[f"{index}.total"] = own.total
        arrays[f"{index}.outer"] = own.half
        arrays[f"{index}.images"] = np.array(own.images)
        if own.scatter is not None:
            arrays[f"{index}.scatter"] = own.scatter
        if own.owed is not None:
            arrays[f"{index}.owed"] = own.owed
        if own.scales is not None:
            arrays[f"{index}.scale_counts"], arrays[f"{index}.scale_totals"] = own.scales
    with atomic_write(path, remedy="Choose another place with --calib-stats.") as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_moments(path: Path) -> dict[str, Moments]:
    """Raises LoadError where the file holds no moments."""
    try:
        # Arrays are stored uncompressed: together they cannot be larger than the file.
        arrays = read_arrays(path, most_bytes=require_plain_file(path))
        if str(arrays["format"]) != _FORMAT:
            raise LoadError(f"{path} holds {arrays['format']}, not {_FORMAT}.")
        return {str(name): _unpack(arrays, index) for index, name in enumerate(arrays["names"])}
    except LoadError:
        raise
    except (KeyError, ValueError, TypeError) as error:  # Arrays that are missing or of other shapes.
        raise _no_statistics(path) from error


def load_counted(path: Path) -> frozenset[str]:
    """The digests of the samples behind the moments in a file; none in one of an earlier version."""
    counted = read_arrays(path, only={"counted"}).get("counted", np.zeros(0, dtype=bytes))
    if counted.dtype.kind != "S" or counted.ndim != 1:
        raise _no_statistics(path)
    return frozenset(digest.decode("ascii", "replace") for digest in counted.tolist())


def _no_statistics(path: Path) -> LoadError:
    return LoadError(f"{path} holds no calibration statistics. Name a new file with --calib-stats.")


def calibration_remarks(
    moments: Mapping[str, Moments], trained_means: Mapping[str, Float64] | None = None
) -> tuple[str, ...]:
    """What the user should know: too few images for a layer's size, inputs that never change, odd preprocessing.

    `trained_means` are the mean inputs of layers in training, which batch norm holds (`mean_inputs` of the model before
    it is folded): where most layers have other means, the images were prepared in another way.
    """
    varying = {name: layer for name, layer in moments.items() if varies(layer)}
    few = {name: share for name, layer in varying.items() if (share := float(layer.shrinkage.mean())) > _MOSTLY_WEIGHTS}
    notes: list[str] = []
    if few:
        name = max(few, key=lambda name: few[name])
        layer, many = moments[name], len(few) > 1
        notes.append(
            f"{len(few)} layer{'s have' if many else ' has'} too few images for {'their' if many else 'its'} size, "
            f"{name} most of all ({layer.images:,} images for {layer.total.shape[1]:,} inputs): the factors "
            "there follow the weights more than the images."
        )
    constant = [name for name in moments if name not in varying]
    if constant:
        notes.append(f"the inputs of {', '.join(constant[:3])} never change over these images.")
    if trained_means:
        pairs = [(moments[name].mean, mean) for name, mean in trained_means.items() if name in moments]
        gaps = [float(np.linalg.norm(mean - trained) / (np.linalg.norm(trained) + 1e-30)) for mean, trained in pairs]
        if gaps and np.median(gaps) > _FAR_FROM_TRAINING:
            notes.append(
                f"the layers' mean inputs are {100 * np.median(gaps):.0f} % away from those that batch norm saw in "
                "training: check --mean, --std and the range of the images."
            )
    return tuple(notes)


def samples_per_image(site: Site, images: int) -> int:
    """The number of positions to sample in each image."""
    entries = prod(site.kernel_shape[1:])
    least = min(LEAST_SAMPLES, _MANY_ENTRIES // (site.group * entries))
    return min(-(-max(SAMPLES_PER_ENTRY * entries, least) // images), positions_to_read(site))


def sample_patches(
    uses: Sequence[Use],
    site: Site,
    batch: int,
    images: int,
    rng: np.random.Generator,
    groups: Groups | None = None,
) -> Iterator[tuple[Float32, Groups | None]]:
    """Patches of all uses of a layer on a batch, each (group, images, positions, d), some images at a time, and the
    groups of these images.

    Positions are drawn from all uses alike, so that a use counts by its size. The patches of one image are put
    together, since they are no independent samples. Raises LoadError for values that are not finite or huge, and where
    the weight does not fit its input.
    """
    drawn = draw_positions(uses, site, batch, images, rng)
    for some in row_blocks(uses, site, drawn, batch):
        parts = [_patches(use.of_images(some), site, at[some]) for use, at in zip(uses, drawn, strict=True)]
        for part in together([by_image(own, use, batch) for own, use in zip(parts, uses, strict=True)], axis=2):
            yield part, groups_at(groups, uses[0], some, part.shape[1])


def _rows_of_an_image(use: Use, batch: int) -> int:
    """How many rows of its input a layer reads for each image: several where windows lie on the first axis, say."""
    return max(1, use.images // batch) if use.images % batch == 0 else 1


def by_image(patches: Array, use: Use, batch: int) -> Array:
    """(group, rows, positions, d) -> (group, images, positions, d): the rows of an image are positions of it."""
    group, count, positions, d = patches.shape
    own = _rows_of_an_image(use, batch)
    return patches.reshape(group, count // own, own * positions, d)


def groups_at(groups: Groups | None, use: Use, some: slice, count: int) -> Groups | None:
    """The groups of the `count` images behind some of the rows that a layer reads; None where they do not tell."""
    if groups is None or not len(groups):
        return None
    own = _rows_of_an_image(use, len(groups))
    behind = groups[some.start // own : -(-some.stop // own)]
    return behind if len(behind) == count else None


def row_blocks(uses: Sequence[Use], site: Site, drawn: Sequence[Positions], batch: int) -> Iterator[slice]:
    """The rows to gather the patches of all uses from at a time, those of whole images together.

    All of them where the uses differ in number.
    """
    counts = {use.images for use in uses}
    step, own = max(counts), _rows_of_an_image(uses[0], batch)
    if len(counts) == 1:
        step = max(1, images_to_sum(site, sum(positions.shape[1] for positions in drawn)) // own) * own
    yield from (slice(start, start + step) for start in range(0, max(counts), step))


def _patches(use: Use, site: Site, positions: Positions) -> Float32:
    part, wanted = use.patches(positions), prod(site.kernel_shape[1:])
    if part.shape[-1] != wanted:
        raise LoadError(
            f"{site.name} reads {part.shape[-1]} values at a time, but its weight takes {wanted}: the model does not "
            "run."
        )
    if not np.abs(part).max(initial=0.0) < _HUGE:
        raise LoadError(
            f"the inputs of {site.name} are NaN, infinite or huge on these images. Check the model and preprocessing."
        )
    return part


def draw_positions(
    uses: Sequence[Use], site: Site, batch: int, images: int, rng: np.random.Generator
) -> list[Positions]:
    """For each use the positions (images, count) to sample of its outputs."""
    total = sum(use.images * use.positions for use in uses)
    wanted = samples_per_image(site, images) * batch
    return [
        sample_positions(rng, use.images, use.positions, -(-wanted * use.positions // max(total, 1))) for use in uses
    ]


def together(parts: Sequence[Array], axis: int) -> list[Array]:
    """Arrays of the same images, on the second axis, put together along another; those of other images stay apart."""
    by_images: dict[int, list[Array]] = {}
    for part in parts:
        by_images.setdefault(part.shape[1], []).append(part)
    return [np.concatenate(own, axis=axis) if len(own) > 1 else own[0] for own in by_images.values()]


def varies(own: Moments) -> bool:
    """Whether any input of the layer changes from image to image."""
    squares = diagonal(own.half)
    return bool((squares / own.count - own.mean**2 > 1e-10 * squares / own.count).any())


def _unpack(file: Mapping[str, np.ndarray], index: int) -> Moments:
    """One layer of a file. Raises ValueError or TypeError for what no images could have given."""
    count, images = _whole(file[f"{index}.count"], least=1), _whole(file[f"{index}.images"], least=0)
    total, half = file[f"{index}.total"], file[f"{index}.outer"]
    scatter, owed = file.get(f"{index}.scatter"), file.get(f"{index}.owed")
    counts, totals = file.get(f"{index}.scale_counts"), file.get(f"{index}.scale_totals")
    if any(array is not None and array.dtype != np.float64 for array in (total, half, scatter, owed, counts, totals)):
        raise TypeError("the moments are not float64")
    scales = (counts, totals) if counts is not None and totals is not None else None
    if scatter is not None and (scatter.shape != total.shape[:1] or not (scatter >= 0).all()):
        raise ValueError("no scatter of images")
    groups, d = total.shape
    if half.shape != (groups, d * (d + 1) // 2):  # Before anything of d x d is allocated.
        raise ValueError(half.shape)
    if scales is not None and not _are_parts(scales, count, total):
        raise ValueError("no scales")
    moments = Moments(count, total, half, images, scatter, owed, scales)
    with np.errstate(all="ignore"):
        is_possible = _is_semidefinite(moments.covariance) and np.isfinite(moments.shrinkage).all()
    if not is_possible or (owed is not None and not _is_semidefinite(owed, _ROUNDING_OF_GRADIENTS)):
        raise ValueError("no moments")
    return moments


def _are_parts(scales: tuple[Float64, Float64], count: int, total: Float64) -> bool:
    """True where the scales make up the count and the sum of all patches."""
    counts, totals = scales
    if counts.shape != totals.shape[:1] or totals.shape[1:] != total.shape or not (counts > 0).all():
        return False
    if not np.isfinite(counts.sum()) or not np.isfinite(totals).all():
        return False
    rounding = 1e-6 * float(np.abs(totals).max(initial=0.0))
    return bool(np.isclose(counts.sum(), count) and np.allclose(totals.sum(axis=0), total, atol=rounding))


def _whole(number: np.ndarray, least: int) -> int:
    if number.dtype.kind not in "iu" or number.ndim or number < least:
        raise ValueError("no count")
    return int(number)


def _is_semidefinite(matrices: Float64, share: float = 1e-6) -> bool:
    """True for finite symmetric matrices (groups, m, m) without eigenvalues below zero, up to rounding."""
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or not np.isfinite(matrices).all():
        return False
    rounding = share * (float(np.abs(matrices).max(initial=0.0)) or 1.0)
    if not np.allclose(matrices, matrices.transpose(0, 2, 1), rtol=0, atol=rounding):
        return False
    try:
        np.linalg.cholesky(matrices + rounding * np.eye(matrices.shape[1]))
    except np.linalg.LinAlgError:
        return False
    return True

"""From clue maps to the points that prompt SAM: peaks, clusters, class-wise groups, dense grid."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from bridge.clues.interface import Clues
from bridge.proposals.peaks import peak_points
from weaksam_jax.data.store import SOURCES
from weaksam_jax.ranges import Count, Filled, Rule, Settings, Share, integers

# The long side of a VOC image, for which the published kernels are meant.
REFERENCE_LONG_SIDE = 500
PromptSource = Literal["grid", "coarse", "fine", "cross"]
Kernel = Annotated[int, integers(1, 9999), Rule(lambda side: side % 2 == 1, "an odd number")]


@dataclass(frozen=True)
class PromptConfig(Settings):
    """How points are found."""

    sources: Filled[PromptSource] = ("grid", "coarse", "fine", "cross")
    """Kinds of prompts, out of grid, coarse, fine, cross."""
    kernel_coarse: Kernel = 17
    """Side of the window of a peak in the coarse maps, in image pixels, odd."""
    kernel_fine: Kernel = 17
    """The same for the fine maps."""
    kernel_cross: Kernel = 129
    """The same for the cross maps."""
    threshold: Share = 0.9
    """Least value of a peak on a map from 0 to 1."""
    max_peaks: Count = 25
    """Most peaks of a map."""
    cross_divisor: Count | None = 5
    """n cross points become max(1, n // divisor) cluster centres; none keeps the points."""
    grid_side: Annotated[int, integers(0, 512)] = 32
    """Points per row and column of the dense grid."""
    relative_kernel: bool = False
    """Windows are meant for a long side of 500 pixels and scale with the image."""

    @classmethod
    def paper(cls) -> "PromptConfig":
        """Appendix H: one kernel of 128 (129 here, as a window needs a centre), clustered cross."""
        return cls(kernel_coarse=129, kernel_fine=129)

    @classmethod
    def official(cls) -> "PromptConfig":
        """The official VOC07 commands: kernels 17, 17, 129; cross points are not clustered."""
        return cls(cross_divisor=None)

    @classmethod
    def mini(cls) -> "PromptConfig":
        """Images of at most 192 pixels: relative kernels and a 10 x 10 grid."""
        return cls(relative_kernel=True, grid_side=10)


@dataclass(frozen=True)
class Prompts:
    """Points for SAM, in pixels of the image (x to the right, y down).

    grid: float32 `[G, 2]`. points: float32 `[n, 5]`: x, y, value, class (-1: none), index of the
    source in `weaksam_jax.data.store.SOURCES`. groups: (class, source index, indices into points)
    for every class with at least two coarse or fine points: they also form one prompt together
    (a single point would only repeat itself).
    """

    grid: np.ndarray
    points: np.ndarray
    groups: list[tuple[int, int, np.ndarray]] = field(default_factory=list)


def prompt_points(
    clues: Clues,
    config: PromptConfig,
    height: int | None = None,
    width: int | None = None,
) -> Prompts:
    """All prompts of an image of that size (None: the size of the maps divided by their scale).

    Points of one source are in order of class, then map, best first. Cluster centres of cross
    points are truncated to whole pixels, have value 1 and no class (official code,
    docs/provenance/proposals.md, section 2.2). Deterministic.
    """
    map_height, map_width = clues.coarse.shape[-2:]
    height = round(map_height / clues.scale) if height is None else height
    width = round(map_width / clues.scale) if width is None else width
    sets = [np.zeros((0, 5), np.float32)]
    for source in ("coarse", "fine", "cross"):
        maps = getattr(clues, source)
        if source in config.sources and maps is not None:
            kernel = _kernel(config, source, max(height, width), scale=clues.scale)
            points = _source_points(maps, clues.class_ids, kernel, config=config)
            points[:, :2] /= (map_width / width, map_height / height)
            if source == "cross" and config.cross_divisor is not None:
                points = _cluster(points, config.cross_divisor)
            origin = np.full(len(points), SOURCES.index(source))
            sets.append(np.column_stack([points, origin]).astype(np.float32))
    points = np.concatenate(sets)
    side = config.grid_side if "grid" in config.sources else 0
    return Prompts(dense_grid(side, height, width), points, _groups(points))


def dense_grid(side: int, height: int, width: int) -> np.ndarray:
    """Centres `[side * side, 2]` of the cells of a regular grid over the image, row by row."""
    centres = (np.arange(side) + 0.5) / max(side, 1)
    x, y = np.meshgrid(centres * width, centres * height)
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def _kernel(config: PromptConfig, source: str, long_side: int, scale: float) -> int:
    """Window of a source in map pixels: odd, at least 3 where it had to be scaled."""
    kernel = getattr(config, f"kernel_{source}")
    factor = scale * (long_side / REFERENCE_LONG_SIDE if config.relative_kernel else 1)
    return kernel if factor == 1 else max(3, 2 * round((kernel * factor - 1) / 2) + 1)


def _source_points(
    maps: np.ndarray, class_ids: np.ndarray, kernel: int, config: PromptConfig
) -> np.ndarray:
    """Peaks of maps `[c, h, w]` or `[M, c, h, w]` as `[n, 4]`: x, y (map pixels), value, class."""
    by_class = np.swapaxes(maps if maps.ndim == 4 else maps[None], 0, 1)
    found = [np.zeros((0, 4), np.float32)]
    for label, one_class in zip(class_ids, by_class, strict=True):
        for peaks in peak_points(one_class, kernel, config.threshold, max_peaks=config.max_peaks):
            labels = np.full(len(peaks), label)
            found.append(np.column_stack([peaks, labels]).astype(np.float32))
    return np.concatenate(found)


def _cluster(points: np.ndarray, divisor: int) -> np.ndarray:
    """Centres of the pooled points `[n, 4]` by k-means with max(1, n // divisor) clusters."""
    if not len(points):
        return points
    places = points[:, :2].astype(np.float64)
    clusters = min(max(1, len(places) // divisor), len(np.unique(places, axis=0)))
    with threadpool_limits(1):  # sums in one order, so equal bits on every run
        centres = KMeans(clusters, random_state=0).fit(places).cluster_centers_
    value, no_class = np.ones(len(centres)), np.full(len(centres), -1)
    return np.column_stack([np.trunc(centres), value, no_class]).astype(np.float32)


def _groups(points: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """The class-wise groups of coarse and fine points, by source and class."""
    groups = []
    for source in (SOURCES.index("coarse"), SOURCES.index("fine")):
        for label in np.unique(points[points[:, 4] == source, 3]):
            index = np.flatnonzero((points[:, 4] == source) & (points[:, 3] == label))
            if len(index) > 1:
                groups.append((int(label), source, index))
    return groups

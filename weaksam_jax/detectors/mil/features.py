"""Maps of a frozen backbone, computed once and kept on disk."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from weaksam_jax.data.content import content_hash
from weaksam_jax.data.images import load_image
from weaksam_jax.data.padding import resize_and_pad
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.scales import Scale, Shown, bucket_of, shown_at
from weaksam_jax.data.views import View, views_of
from weaksam_jax.engine.step import Params
from weaksam_jax.files import (
    fingerprint,
    is_whole,
    read_arrays,
    write_arrays,
)
from weaksam_jax.progress import progress_bar

# (images uint8 `[B, H, W, 3]`, sizes float32 `[B, 2]`) -> maps float16 `[B, h, w, F]` by name.
MapsOf = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


class FeatureCache:
    """Maps of a frozen backbone on disk, float16, one file per image and view.

    `<folder>/<key>/<xx>/<fingerprint of the image's file>-<scale>[-flipped].safetensors`; written
    atomically, so a killed run goes on with the missing ones, and an image of another content has
    other maps, whatever its id. key: a hash of what the maps depend on but for the image.
    """

    def __init__(self, folder: str | Path, key: str):
        self.folder = Path(folder) / key
        self._content: dict[int, str] = {}  # by image id

    def path(self, image_id: int, view: View) -> Path:
        """The file of an image of `fill`."""
        content = self._content[image_id]
        name = f"{content}-{view.scale}{'-flipped' if view.flip else ''}.safetensors"
        return self.folder / content[:2] / name

    def read(self, image_id: int, view: View) -> dict[str, np.ndarray]:
        """The maps float16 `[h, w, F]` by name; `BadInput` when damaged."""
        return read_arrays(self.path(image_id, view))[0]

    def fill(
        self,
        split: TagSplit,
        scales: Sequence[Scale],
        maps_of: MapsOf,
        *,
        batch_size: int,
    ) -> None:
        """Computes what is missing (or not whole) of every scale, plain and mirrored."""
        todo: dict[tuple[View, Shown], list[TagRecord]] = {}
        for record in split.records:
            self._content[record.image_id] = content_hash(record.path)
            for view in views_of(scales):
                if not is_whole(self.path(record.image_id, view)):
                    shown = shown_at(scales[view.scale], bucket_of(record, scales))
                    todo.setdefault((view, shown), []).append(record)
        total = sum(map(len, todo.values()))
        with progress_bar(None, f"features {split.split}", total=total) as bar:
            for (view, shown), records in todo.items():
                for start in range(0, len(records), batch_size):
                    chunk = records[start : start + batch_size]
                    self._compute(chunk, view, shown, count=batch_size, maps_of=maps_of)
                    bar.update(len(chunk))

    def _compute(
        self,
        records: Sequence[TagRecord],
        view: View,
        shown: Shown,
        *,
        count: int,
        maps_of: MapsOf,
    ) -> None:
        """Stores the maps of some images, at most `count`, to which a batch is filled up."""
        images = np.zeros((count, *shown.padded, 3), np.uint8)
        sizes, none = np.ones((count, 2), np.float32), np.zeros((0, 4), np.float32)
        for i, record in enumerate(records):
            image = load_image(record.path)
            how = {"scale": shown.fit(*image.shape[:2]), "flip": view.flip}
            images[i], _, sizes[i] = resize_and_pad(image, none, shown.padded, **how)
        maps = maps_of(images, sizes)
        for i, record in enumerate(records):
            own = {name: value[i] for name, value in maps.items()}
            write_arrays(self.path(record.image_id, view), own, durable=False)


def cache_maps(
    split: TagSplit,
    scales: Sequence[Scale],
    folder: str | Path,
    *,
    backbone: Params,
    stated: Sequence[str | bool | None],
    maps_of: MapsOf,
    batch_size: int,
) -> FeatureCache:
    """The filled cache of a frozen backbone's maps on a split.

    backbone: its parameters; stated: what the maps depend on beside them. The key of the cache is
    made of both.
    """
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(backbone):
        weights.update(repr(leaf.shape).encode() + np.ascontiguousarray(leaf).tobytes())
    key = fingerprint([scales, stated, weights.hexdigest()])
    cache = FeatureCache(Path(folder) / "features" / split.split, key)
    cache.fill(split, scales, maps_of, batch_size=batch_size)
    return cache

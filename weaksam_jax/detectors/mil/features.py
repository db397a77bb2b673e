"""Maps of a frozen backbone, computed once and kept on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from weaksam_jax.backbones.lite0 import Lite0, lite0_input
from weaksam_jax.data.batches import resize_to_canvas
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.scales import Scale, shape_group
from weaksam_jax.data.views import View, views_of
from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.detectors.mil.network import MAPS
from weaksam_jax.errors import BadInput
from weaksam_jax.files import fingerprint, read_arrays, write_arrays
from weaksam_jax.ops.padding import inside_mask


class FeatureCache:
    """Maps of a frozen backbone on disk, float16, one file an image and view.

    `<folder>/<key>/<xx>/<image id>-<scale>[-mirrored].safetensors`; written atomically, so a killed
    run goes on with the missing ones. key: a hash of what the maps depend on but for the image.
    """

    def __init__(self, folder: str | Path, key: str):
        self.folder = Path(folder) / key

    def path(self, image_id: int, view: View) -> Path:
        name = f"{image_id}-{view.scale}{'-mirrored' if view.mirrored else ''}.safetensors"
        return self.folder / f"{image_id % 100:02d}" / name

    def read(self, image_id: int, view: View) -> dict[str, np.ndarray]:
        """The maps float16 `[h, w, F]` by name; `BadInput` when damaged."""
        return read_arrays(self.path(image_id, view))[0]

    def fill(
        self,
        split: TagSplit,
        scales: Sequence[Scale],
        views: Sequence[View],
        network: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]],
        batch: int,
    ) -> None:
        """Computes what is missing. network: (images uint8 `[B, H, W, 3]`, sizes `[B, 2]`) -> maps
        float16 `[B, h, w, F]` by name."""
        todo: dict[tuple[View, int], list[TagRecord]] = {}
        for record in split.records:
            for view in views:
                if not self.path(record.image_id, view).exists():
                    key = (view, shape_group(record, scales))
                    todo.setdefault(key, []).append(record)
        total = sum(map(len, todo.values()))
        with tqdm(total=total, desc=f"features {split.split}", unit="images") as bar:
            for (view, group), records in todo.items():
                canvas = scales[view.scale][group]
                for start in range(0, len(records), batch):
                    self._run(records[start : start + batch], view, canvas, network, batch)
                    bar.update(len(records[start : start + batch]))

    def _run(self, records, view, canvas, network, batch) -> None:
        images = np.zeros((batch, *canvas, 3), np.uint8)  # the last batch is padded
        sizes = np.ones((batch, 2), np.float32)
        none = np.zeros((0, 4), np.float32)
        for i, record in enumerate(records):
            image = load_image(record.path)
            images[i], _, sizes[i] = resize_to_canvas(image, none, canvas, flip=view.mirrored)
        maps = network(images, sizes)
        for i, record in enumerate(records):
            own = {name: value[i] for name, value in maps.items()}
            write_arrays(self.path(record.image_id, view), own)


def frozen_features(
    split: TagSplit,
    settings: WsodSettings,
    folder: Path,
    backbone: Any,
    scales: tuple[Scale, ...] | None = None,
) -> FeatureCache | None:
    """The filled cache of the frozen backbone's maps; None for a trained backbone.

    scales: those that are cached, plain and mirrored; None: the settings' scales of training.
    """
    if settings.backbone != "lite0":
        return None
    if backbone is None:
        problem, hint = "has no backbone weights", "give those of bridge.convert efficientnet_lite0"
        raise BadInput("the MIL detector", problem, hint)
    sums = [float(np.abs(leaf).sum(dtype=np.float64)) for leaf in jax.tree.leaves(backbone)]
    scales = scales or settings.scales
    key = fingerprint([settings.backbone, scales, sums])
    cache = FeatureCache(folder / "features" / split.split, key)
    weights = jax.device_put(backbone)

    @jax.jit
    def maps_of(weights, images, sizes):
        x = jnp.where(inside_mask(sizes, *images.shape[1:3])[..., None], lite0_input(images), 0.0)
        maps = Lite0(head=True).apply({"params": weights}, x)[1:]
        return {name: one.astype(jnp.float16) for name, one in zip(MAPS, maps, strict=True)}

    cache.fill(
        split,
        scales,
        views_of(scales),
        lambda images, sizes: jax.device_get(maps_of(weights, images, sizes)),
        settings.test_batch,
    )
    return cache

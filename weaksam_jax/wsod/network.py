"""The MIL detector that settings name, and what is fed to it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from weaksam_jax.models.mil import MilDetector
from weaksam_jax.models.mini_cnn import MiniCnn, mini_input
from weaksam_jax.ops.roi import roi_align, roi_pool
from weaksam_jax.wsod.settings import WsodSettings

STRIDE = {"mini_cnn": 8, "lite0": 16}
MAPS = ("map0", "map1")  # cached maps of Lite0: block 10 at stride 16, ImageNet's head at 32


def build_model(settings: WsodSettings, classes: int) -> MilDetector:
    """The detector of these settings; with "lite0" it takes cached maps."""
    scale = 1.0 / STRIDE[settings.backbone]
    if settings.pooling == "align":
        pool = functools.partial(
            roi_align,
            spatial_scale=scale,
            output_size=settings.pool_size,
            sampling_ratio=1,
            chunk=0,
        )
    else:
        pool = functools.partial(roi_pool, spatial_scale=scale, output_size=settings.pool_size)
    return MilDetector(
        classes,
        pool,
        MiniCnn(name="backbone") if settings.backbone == "mini_cnn" else None,
        len(MAPS) if settings.backbone == "lite0" else 1,
        settings.neck,
        settings.width,
        settings.dropout,
        settings.evidence,
    )


def network_input(settings: WsodSettings, batch: dict) -> tuple[Any, jax.Array]:
    """(network input: images or a tuple of cached maps, bool `[B, h, w]` cells that are not
    padding)."""
    sizes, stride = batch["size"], STRIDE[settings.backbone]
    if settings.backbone == "lite0":
        maps = tuple(batch[name] for name in MAPS)
        return maps, inside_mask(sizes / stride, *maps[0].shape[1:3])
    images = batch["image"]
    height, width = images.shape[1:3]
    images = jnp.where(inside_mask(sizes, height, width)[..., None], mini_input(images), 0.0)
    return images, inside_mask(sizes / stride, height // stride, width // stride)


def inside_mask(sizes: jax.Array, height: int, width: int) -> jax.Array:
    rows = jnp.arange(height)[None, :] < sizes[:, :1]
    columns = jnp.arange(width)[None, :] < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]

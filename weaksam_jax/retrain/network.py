"""The Faster R-CNN that settings name, its fresh parameters and what is fed to it."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from weaksam_jax.data.batches import Canvas
from weaksam_jax.errors import BadInput
from weaksam_jax.models.faster_rcnn import FasterRCNN
from weaksam_jax.models.fpn import MiniTrunk
from weaksam_jax.models.lite0 import Lite0, lite0_input
from weaksam_jax.models.mini_cnn import mini_input
from weaksam_jax.retrain.settings import RetrainSettings


def build_model(settings: RetrainSettings, classes: int) -> FasterRCNN:
    """The detector of these settings."""
    backbone = {"mini_cnn": MiniTrunk, "lite0": Lite0}[settings.backbone]()
    return FasterRCNN(
        backbone,
        classes,
        settings.strides,
        settings.anchor_sizes,
        settings.anchor_ratios,
        settings.channels,
        settings.extra_levels,
        settings.fc_width,
        canonical_size=settings.canonical_size,
        canonical_level=settings.canonical_level,
    )


def normalise(images: jax.Array, sizes: jax.Array, backbone: str) -> jax.Array:
    """uint8 `[B, H, W, 3]` -> the backbone's float input, 0 outside the images' (height, width)."""
    scaled = {"mini_cnn": mini_input, "lite0": lite0_input}[backbone](images)
    rows = jnp.arange(images.shape[1])[None, :] < sizes[:, :1]
    columns = jnp.arange(images.shape[2])[None, :] < sizes[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], scaled, 0)


def init_model(
    model: FasterRCNN, canvas: Canvas, key: jax.Array, backbone: Mapping[str, Any] | None
) -> dict:
    """Fresh parameters, with those of `backbone` (nested dictionary) where given.

    A backbone that is frozen in part or makes sense only with ImageNet weights must be given.
    """
    if backbone is None and not isinstance(model.backbone, MiniTrunk):
        cure = "give the weights that bridge.convert writes"
        raise BadInput("backbone weights", "are missing (this backbone is not for scratch)", cure)
    shapes = (jnp.zeros((1, *canvas, 3)), jnp.zeros((1, 1, 4)))
    params = jax.jit(model.init)(key, *shapes)["params"]
    if backbone is None:
        return params
    whole = params["backbone"]
    part = whole["stem"] if isinstance(model.backbone, MiniTrunk) else whole
    given = flax.traverse_util.flatten_dict(backbone)
    own = flax.traverse_util.flatten_dict(part)
    wrong = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if wrong:
        problem = f"{'/'.join(wrong[0])} is missing or of another shape"
        raise BadInput("backbone weights", problem, "give weights of the same backbone")
    own = {name: jnp.asarray(given[name], value.dtype) for name, value in own.items()}
    part = flax.traverse_util.unflatten_dict(own)
    whole = {**whole, "stem": part} if isinstance(model.backbone, MiniTrunk) else part
    return {**params, "backbone": whole}

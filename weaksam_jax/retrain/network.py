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
from weaksam_jax.models.resnet import ResNet50, resnet_input
from weaksam_jax.ops.canvas import inside_mask
from weaksam_jax.retrain.settings import RetrainSettings


def build_model(settings: RetrainSettings, classes: int) -> FasterRCNN:
    """The detector of these settings."""
    dtype = jnp.dtype(settings.dtype)
    return FasterRCNN(
        _build_backbone(settings.backbone, dtype),
        classes,
        settings.strides,
        settings.anchor_sizes,
        settings.anchor_ratios,
        settings.channels,
        settings.extra_levels,
        settings.fc_width,
        canonical_size=settings.canonical_size,
        canonical_level=settings.canonical_level,
        aligned=settings.aligned,
        round_anchors=settings.round_anchors,
        dtype=dtype,
    )


def _build_backbone(name: str, dtype: jnp.dtype):
    """The backbone of that name. frozen_stages=0: `retrain.train` holds `settings.frozen`."""
    if name == "resnet50_msra":
        return ResNet50(stride_in_1x1=True, frozen_stages=0, dtype=dtype)
    if name == "resnet50":
        return ResNet50(frozen_stages=0, dtype=dtype)
    return {"mini_cnn": MiniTrunk, "lite0": Lite0}[name]()


def normalise(images: jax.Array, sizes: jax.Array, backbone: str) -> jax.Array:
    """uint8 `[B, H, W, 3]` -> the backbone's float input, 0 outside the images' (height, width)."""
    inputs = {
        "mini_cnn": mini_input,
        "lite0": lite0_input,
        "resnet50": lambda x: resnet_input(x, "torchvision"),
        "resnet50_msra": lambda x: resnet_input(x, "msra"),
    }
    scaled = inputs[backbone](images)
    return jnp.where(inside_mask(sizes, *images.shape[1:3])[..., None], scaled, 0)


def init_model(
    model: FasterRCNN, canvas: Canvas, key: jax.Array, backbone: Mapping[str, Any] | None
) -> dict:
    """Fresh parameters, with those of `backbone` (nested dictionary) where given.

    A backbone that is frozen in part or makes sense only with ImageNet weights must be given.
    """
    if backbone is None and not isinstance(model.backbone, MiniTrunk):
        cure = "give the weights that bridge.convert writes"
        raise BadInput("backbone weights", "are missing (this backbone is not for scratch)", cure)
    params = jax.jit(model.init)(key, *_inputs(canvas))["params"]
    if backbone is None:
        return params
    whole = params["backbone"]
    part = whole["stem"] if isinstance(model.backbone, MiniTrunk) else whole
    given = _fill(part, flax.traverse_util.flatten_dict(backbone, sep="/"), "backbone weights")
    whole = {**whole, "stem": given} if isinstance(model.backbone, MiniTrunk) else given
    return {**params, "backbone": whole}


def detector_params(model: FasterRCNN, canvas: Canvas, arrays: Mapping[str, Any]) -> dict:
    """Parameters of the whole detector from `arrays` with names joined by "/" (`bridge.convert`'s).

    Raises `BadInput` when one is missing, unknown or of another shape.
    """
    own = jax.eval_shape(model.init, jax.random.key(0), *_inputs(canvas))["params"]
    unknown = sorted(set(arrays) - set(flax.traverse_util.flatten_dict(own, sep="/")))
    if unknown:
        cure = "give weights of the same detector"
        raise BadInput("detector weights", f"{unknown[0]} is not of this detector", cure)
    return _fill(own, arrays, "detector weights")


def _inputs(canvas: Canvas) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((1, *canvas, 3)), jnp.zeros((1, 1, 4))


def _fill(own: dict, given: Mapping[str, Any], where: str) -> dict:
    """`own` (a tree of arrays or shapes) with the values of `given`; names joined by "/"."""
    own = flax.traverse_util.flatten_dict(own, sep="/")
    wrong = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if wrong:
        problem = f"{wrong[0]} is missing or of another shape"
        raise BadInput(where, problem, "give weights of the same network")
    filled = {name: jnp.asarray(given[name], value.dtype) for name, value in own.items()}
    return flax.traverse_util.unflatten_dict(filled, sep="/")

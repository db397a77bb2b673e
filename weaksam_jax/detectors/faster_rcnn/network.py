"""The Faster R-CNN that settings name, its fresh or stored parameters and what is fed to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from weaksam_jax.backbones.fpn import MiniTrunk
from weaksam_jax.backbones.lite0 import Lite0, lite0_input
from weaksam_jax.backbones.mini_cnn import mini_input
from weaksam_jax.backbones.resnet import Pixels, ResNet50, resnet_input
from weaksam_jax.data.batches import Canvas
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings
from weaksam_jax.detectors.faster_rcnn.model import FasterRCNN
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays
from weaksam_jax.ops.padding import inside_mask

# The pixels that the ImageNet weights of a backbone were trained on: metadata `pixels` of a file.
PIXELS: dict[str, Pixels] = {"resnet50": "torchvision", "resnet50_msra": "msra"}


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
        **{name: partial(resnet_input, pixels=pixels) for name, pixels in PIXELS.items()},
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
        hint = "give the weights that bridge.convert writes"
        raise BadInput("retrain.init", "is missing (this backbone is not for scratch)", hint)
    params = jax.jit(model.init)(key, *_inputs(canvas))["params"]
    if backbone is None:
        return params
    whole = params["backbone"]
    part = _given_part(model.backbone, whole)
    given = _fill(part, _flat(backbone), "backbone weights")
    whole = {**whole, "stem": given} if isinstance(model.backbone, MiniTrunk) else given
    return {**params, "backbone": whole}


def load_backbone(path: str | Path, settings: RetrainSettings, root: str = "") -> dict | None:
    """Backbone parameters (nested) for `init_model` from a safetensors file.

    root: "backbone/" reads those of a whole detector; None when it has none. Raises `BadInput` with
    the path when one is missing or of another shape, or trained on other pixels than
    `settings.backbone` is fed with, which shapes do not tell and which costs several AP silently.
    """
    arrays, metadata = read_arrays(path)
    check_pixels(path, metadata, settings.backbone)
    given = {
        name.removeprefix(root): value for name, value in arrays.items() if name.startswith(root)
    }
    if not given:
        return None
    backbone = _build_backbone(settings.backbone, jnp.dtype(settings.dtype))
    whole = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    _check_shapes(_flat(_given_part(backbone, whole)), given, path)
    return flax.traverse_util.unflatten_dict(given, sep="/")


def check_pixels(path: str | Path, metadata: Mapping[str, str], backbone: str) -> None:
    """`BadInput` when a file states (metadata `pixels`) that its weights saw other pixels than this
    backbone is fed with."""
    pixels = metadata.get("pixels")
    if pixels is not None and pixels != PIXELS.get(backbone):
        right = [name for name, theirs in PIXELS.items() if theirs == pixels]
        hint = f"set retrain.backbone to {' or '.join(right)}, or give the weights of {backbone}"
        raise BadInput(path, f"was trained on {pixels} pixels, not for backbone {backbone}", hint)


def detector_metadata(settings: RetrainSettings, classes: Sequence[str]) -> dict[str, str]:
    """What a file of a detector must state beside its arrays: for `as_trained` and its classes."""
    return {
        "kind": "faster_rcnn",
        "backbone": settings.backbone,
        "aligned": str(settings.aligned),
        "round_anchors": str(settings.round_anchors),
        "classes": json.dumps(list(classes)),
    }


def as_trained(settings: RetrainSettings, metadata: Mapping[str, str]) -> RetrainSettings:
    """`settings` with what the file of a detector states of itself in their place: its backbone
    (and so its pixels and strides), `aligned` and `round_anchors`."""
    stated = {
        one: metadata[one] == "True" for one in ("aligned", "round_anchors") if one in metadata
    }
    if "backbone" in metadata:
        stated["backbone"] = metadata["backbone"]
    return replace(settings, **stated)


def detector_params(
    model: FasterRCNN,
    canvas: Canvas,
    arrays: Mapping[str, Any],
    path: str | Path = "detector weights",
) -> dict:
    """Parameters of the whole detector from `arrays` with names joined by "/" (`bridge.convert`'s).

    Raises `BadInput`, which names `path`, when one is missing, unknown or of another shape.
    """
    own = jax.eval_shape(model.init, jax.random.key(0), *_inputs(canvas))["params"]
    unknown = sorted(set(arrays) - set(_flat(own)))
    if unknown:
        hint = "give weights of the same detector, or the settings that it was trained with"
        raise BadInput(path, f"{unknown[0]} is not of this detector", hint)
    return _fill(own, arrays, path)


def _inputs(canvas: Canvas) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((1, *canvas, 3)), jnp.zeros((1, 1, 4))


def _given_part(backbone: Any, params: dict) -> dict:
    """The part of a backbone's parameters that is given and not trained from scratch."""
    return params["stem"] if isinstance(backbone, MiniTrunk) else params


def _flat(params: dict) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(params, sep="/")


def _check_shapes(own: Mapping[str, Any], given: Mapping[str, Any], path: str | Path) -> None:
    for name, value in own.items():
        if name not in given or np.shape(given[name]) != value.shape:
            problem = f"{name} is missing or of another shape than {list(value.shape)}"
            raise BadInput(path, problem, "give weights of the same network")


def _fill(own: dict, given: Mapping[str, Any], path: str | Path) -> dict:
    """`own` (a tree of arrays or shapes) with the values of `given`; names joined by "/"."""
    own = _flat(own)
    _check_shapes(own, given, path)
    filled = {name: jnp.asarray(given[name], value.dtype) for name, value in own.items()}
    return flax.traverse_util.unflatten_dict(filled, sep="/")

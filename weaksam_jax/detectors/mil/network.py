"""The MIL detector that settings name, and what is fed to it."""

import functools
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.mini_cnn import MiniCnn, mini_input
from weaksam_jax.backbones.resnet import ResNet50, is_constant, resnet_input
from weaksam_jax.backbones.vgg16 import Vgg16, vgg_input
from weaksam_jax.detectors.mil.config import PUBLISHED, WsodSettings, check_init
from weaksam_jax.detectors.mil.drop_block import ConcreteDropBlock
from weaksam_jax.detectors.mil.model import MilDetector
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays
from weaksam_jax.ops.padding import inside_mask
from weaksam_jax.ops.roi import roi_align, roi_pool

STRIDE = {"mini_cnn": 8, "lite0": 16, "vgg16": 8, "resnet50": 16}
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
        pool = functools.partial(
            roi_pool,
            spatial_scale=scale,
            output_size=settings.pool_size,
            rounded=settings.pooling == "max",
        )
    published = settings.backbone in PUBLISHED
    tagged = settings.evidence or settings.pretrain_steps or settings.tag_weight
    return MilDetector(
        classes,
        pool,
        _backbone(settings),
        len(MAPS) if settings.backbone == "lite0" else 1,
        settings.neck,
        settings.width,
        settings.dropout,
        settings.evidence,
        class_maps=not published or bool(tagged),
        background=settings.background,
        fc_std=0.01 if published else None,
        score_std=0.001 if published and settings.method == "mist" else 0.01,
        dtype=jnp.dtype(settings.dtype),
        drop_block=ConcreteDropBlock(jnp.dtype(settings.dtype)) if settings.drop_block else None,
    )


def _backbone(settings: WsodSettings) -> MiniCnn | Vgg16 | ResNet50 | None:
    if settings.backbone == "mini_cnn":
        return MiniCnn(dtype=jnp.dtype(settings.dtype), name="backbone")
    if settings.backbone == "vgg16":
        return Vgg16(
            rectify_last=settings.rectify_last,
            frozen_blocks=settings.frozen_blocks,
            dtype=jnp.dtype(settings.dtype),
            name="backbone",
        )
    if settings.backbone == "resnet50":
        return ResNet50(
            frozen_stages=settings.frozen_blocks,
            dilate_last=True,
            dtype=jnp.dtype(settings.dtype),
            name="backbone",
        )
    return None


def is_frozen(settings: WsodSettings, name: str) -> bool:
    """Whether a parameter ("backbone/conv1_1/kernel") has no gradient: no decay for it either."""
    if settings.backbone == "resnet50" and name.startswith("backbone/"):
        return is_constant(name.split("/")[1:], settings.frozen_blocks)
    blocks = range(1, settings.frozen_blocks + 1) if settings.backbone == "vgg16" else ()
    return name.startswith(tuple(f"backbone/conv{block}_" for block in blocks))


def load_init(settings: WsodSettings, params: dict) -> dict:
    """`params` (nested, fresh) with the arrays of the file `settings.init` in their place.

    A file of ImageNet weights (metadata `kind`) has the backbone, that of "vgg16" also fc6 and fc7;
    any other is a whole detector, of which only the class maps and the drop block may be missing.
    Raises `BadInput` when a published network has no `init`, and, naming the tensor, when one is
    missing, of another shape or unknown, or when the file was trained on other pixels or with
    another last ReLU.
    """
    check_init(settings)
    if settings.init in (None, "scratch"):
        return params
    path, fresh = settings.init, flax.traverse_util.flatten_dict(params, sep="/")
    arrays, metadata = read_arrays(path)
    _check_origin(settings, metadata)
    kind = metadata.get("kind")
    if kind == "resnet50":
        arrays = {f"backbone/{name}": value for name, value in arrays.items()}
    hint = "give weights of the network that classes, width, pool_size and background describe"
    for name, value in arrays.items():
        if name not in fresh:
            raise BadInput(path, f"has an unknown tensor {name}", hint)
        if value.shape != fresh[name].shape:
            problem = f"{name} has the shape {value.shape}, not {fresh[name].shape}"
            raise BadInput(path, problem, hint)
    whole = {"vgg16": ("backbone/", "fc6/", "fc7/"), "resnet50": ("backbone/",)}
    pretrained = whole.get(kind, ("",))
    for name in fresh.keys() - arrays.keys():
        if name.startswith(pretrained) and not name.startswith(("tags/", "drop_block/")):
            raise BadInput(path, f"has no tensor {name}", hint)
    placed = {name: jnp.asarray(arrays.get(name, value)) for name, value in fresh.items()}
    return flax.traverse_util.unflatten_dict(placed, sep="/")


def _check_origin(settings: WsodSettings, metadata: dict[str, str]) -> None:
    """What shapes do not tell: the file's pixels and its last ReLU, where it states them."""
    # OICR's release for COCO feeds RGB to weights trained on BGR; the reverse is a mistake.
    if metadata.get("channels") == "rgb" and settings.pixels != "torchvision":
        problem = f'was trained on RGB pixels, but pixels is "{settings.pixels}"'
        raise BadInput(settings.init, problem, 'set pixels to "torchvision"')
    last = metadata.get("rectify_last", str(settings.rectify_last))
    if last != str(settings.rectify_last):
        problem = f"was trained with rectify_last {last}, not {settings.rectify_last}"
        raise BadInput(settings.init, problem, f"set rectify_last to {last}")


def network_input(settings: WsodSettings, batch: dict) -> tuple[Any, jax.Array]:
    """(network input: images or a tuple of cached maps, bool `[B, h, w]` cells that are not
    padding)."""
    sizes, stride = batch["size"], STRIDE[settings.backbone]
    if settings.backbone == "lite0":
        maps = tuple(batch[name] for name in MAPS)
        return maps, inside_mask(sizes / stride, *maps[0].shape[1:3])
    images = batch["image"]
    height, width = images.shape[1:3]
    inputs = {
        "mini_cnn": mini_input,
        "vgg16": lambda x: vgg_input(x, settings.pixels),
        "resnet50": lambda x: resnet_input(x, "torchvision"),
    }
    pixels = inputs[settings.backbone](images)
    images = jnp.where(inside_mask(sizes, height, width)[..., None], pixels, 0.0)
    return images, inside_mask(sizes / stride, height // stride, width // stride)

"""What networks are shown: uint8 RGB to the float input that their weights were trained with.

Mixed up, pixel conventions cost several AP without a word. The numbers are those of
`weaksam_jax.data.pixel_statistics`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from weaksam_jax.data.pixel_statistics import (
    IMAGENET_MEAN_255,
    IMAGENET_STD_255,
    LITE0_MEAN,
    LITE0_STD,
    MIST_MEAN,
    MSRA_MEAN,
    OICR_MEAN,
)
from weaksam_jax.ops.padding import inside_mask

Statistics = tuple[float, float, float]


def _standardised(mean: Statistics, std: Statistics = (1.0, 1.0, 1.0), bgr: bool = False):
    """(channels - mean) / std, both in the order of the channels that the network sees."""

    def normalise(image: jax.Array) -> jax.Array:
        image = (image[..., ::-1] if bgr else image).astype(jnp.float32)
        return (image - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)

    return normalise


# uint8 RGB `[..., 3]` -> float32 `[..., 3]`, by the name of the convention.
PIXELS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # torchvision's weights: RGB by mean and standard deviation.
    "torchvision": _standardised(IMAGENET_MEAN_255, IMAGENET_STD_255),
    # Caffe's ResNets (detectron2's R-50.pkl): BGR less a mean, in 0..255.
    "msra": _standardised(MSRA_MEAN, bgr=True),
    # Caffe's VGG16 as the official code of MIST and of OICR (on VOC) feeds it: BGR less a mean.
    "mist": _standardised(MIST_MEAN, bgr=True),
    "oicr": _standardised(OICR_MEAN, bgr=True),
    # EfficientNet-Lite (tensorflow/tpu, efficientnet/lite): one mean and deviation for all.
    "lite0": lambda image: (image.astype(jnp.float32) - LITE0_MEAN) / LITE0_STD,
    # The mini set's network, trained here from scratch: [-1, 1].
    "mini": lambda image: image.astype(jnp.float32) / 127.5 - 1.0,
}


def network_input(images: jax.Array, sizes: jax.Array, pixels: str) -> jax.Array:
    """uint8 RGB `[B, H, W, 3]` -> float32 by `PIXELS[pixels]`, 0 in the padding.

    sizes: `[B, 2]`, (height, width) of each image within the padded size.
    """
    inside = inside_mask(sizes, *images.shape[1:3])[..., None]
    return jnp.where(inside, PIXELS[pixels](images), 0.0)

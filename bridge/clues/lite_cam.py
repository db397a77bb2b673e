"""Clues for photographs without a GPU: class activation maps of EfficientNet-Lite0.

The backbone has ImageNet weights (packages of the extra `light`) and stays frozen; only a linear
head over its mean-pooled features is trained, on image tags. Its weights applied to every place of
the feature map are the class activation map (Zhou et al. 2016, "CAM").
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.clues.interface import Clues, map_size, minmax, predicted_classes
from bridge.weights.checkpoints import check_keys, read_tensors
from bridge.weights.lite0 import lite0_network
from weaksam_jax.data.pixel_statistics import LITE0_MEAN, LITE0_STD
from weaksam_jax.errors import BadInput
from weaksam_jax.ranges import Filled, Positive, Scaling, Settings, Side, integers
from weaksam_jax.settings import from_plain

CHANNELS = 1280
STRIDE = 16  # of the feature maps, in pixels of the network's input
FIRST_DILATED = 11  # block that would go from stride 16 to 32
AFFINITY_BLOCK = 14  # its 192 channels say which places belong together


@dataclass(frozen=True)
class LiteConfig(Settings):
    """The features, the head and the maps."""

    long_side: Side = 512
    """Of the network's input in pixels, at scale 1."""
    tta_scales: Filled[Scaling] = (1.0,)
    """Scales of that whose maps are averaged."""
    tta_flip: bool = True
    """Each scale also mirrored."""
    penalty: Positive = 5e-2
    """L2 on the head's weights, for standardised features."""
    temperature: Positive = 0.15
    """Of the affinity that refines the maps (`refine`)."""
    steps: Annotated[int, integers(0, 1000)] = 2
    """How often it is applied."""


class LiteBackbone(nn.Module):
    """Frozen EfficientNet-Lite0 with the last stage dilated: features at stride 16, not 32.

    Every second place of the dilated maps has exactly the value of the undilated network.
    Raises `BadInput` when the packages of the extra `light` are not installed.
    """

    def __init__(self):
        super().__init__()
        self.net = lite0_network()
        for index, block in enumerate(self.net._blocks[FIRST_DILATED:]):
            _dilate(block._depthwise_conv, 1 if index == 0 else 2)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, 3, H, W]`, sides multiples of 32 -> `[B, 1280, H/16, W/16]`, `[B, 192, ...]`.

        images: RGB, (x - 127) / 128. The second output is for affinities.
        """
        net = self.net
        x = net._swish(net._bn0(net._conv_stem(images)))
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index == AFFINITY_BLOCK:
                like = x
        return net._swish(net._bn1(net._conv_head(x))), like


def _dilate(conv: nn.Conv2d, dilation: int) -> None:
    """Takes the stride out of a depthwise convolution and spreads its kernel."""
    pad = dilation * (conv.kernel_size[0] // 2)
    conv.stride, conv.dilation = (1, 1), (dilation, dilation)
    conv.static_padding = nn.ZeroPad2d(pad)


def lite_input(image: np.ndarray, long_side: float) -> Tensor:
    """uint8 RGB `[H, W, 3]` -> `[3, h, w]`, sides multiples of 32, the long one near long_side."""
    height, width = image.shape[:2]
    scale = long_side / max(height, width)
    size = tuple(max(32, 32 * round(side * scale / 32)) for side in (width, height))
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() - LITE0_MEAN) / LITE0_STD


def load_lite_cam(path: str | Path, config: LiteConfig | None = None) -> "LiteCam":
    """The clue network of a trained head; config: another one than it was trained with.

    Raises `BadInput` when the file is missing, truncated or no such head.
    """
    tensors, metadata = read_tensors(path)
    hint = "give the lite_cam.safetensors that train_lite_head wrote"
    if tensors.keys() != {"weight", "bias"} or "settings" not in metadata:
        raise BadInput(path, f"is no Lite0 head (keys {', '.join(sorted(tensors)[:8])})", hint)
    try:
        trained = json.loads(metadata["settings"])
    except (ValueError, RecursionError) as error:
        raise BadInput(path, "has settings that are no JSON", "train the head again") from error
    trained = from_plain(LiteConfig, trained, f"{path} (settings)")
    weight, bias = tensors["weight"], tensors["bias"]
    wanted = {"weight": weight.new_empty(len(bias.ravel()), CHANNELS), "bias": bias.ravel()}
    check_keys(path, {name: value.float() for name, value in wanted.items()}, tensors, hint=hint)
    return LiteCam(weight, bias, config or trained)


def channels_last(images: Tensor) -> Tensor:
    """The same images in the memory layout in which a CPU convolves fastest."""
    return images.contiguous(memory_format=torch.channels_last)


def refine(cams: Tensor, features: Tensor, temperature: float, steps: int) -> Tensor:
    """CAMs `[c, h, w]` spread over places with like features `[D, h, w]`.

    Every place takes the mean of the CAM over all places, weighted by the softmax of the cosine
    similarity of features (less their mean over the image) over `temperature`; `steps` times. It
    is for this network what the patch-to-patch attention is for WeakTr's fine CAM.
    """
    flat = features.flatten(1)
    flat = F.normalize(flat - flat.mean(1, keepdim=True), dim=0)
    affinity = (flat.T @ flat / temperature).softmax(-1)
    spread = cams.flatten(1)
    for _ in range(steps):
        spread = spread @ affinity.T
    return spread.view_as(cams)


class LiteCam:
    """Clue network: coarse = CAM, fine = CAM refined by feature affinity, no cross maps."""

    def __init__(self, weight: Tensor, bias: Tensor, config: LiteConfig):
        """weight `[C, 1280]`, bias `[C]` of the trained head."""
        self.weight, self.bias, self.config = weight, bias, config
        self.backbone = LiteBackbone()

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, class_ids: tuple[int, ...] | None = None) -> Clues:
        """Clues at the size of `map_size`; see `Clues`. image: uint8 RGB `[H, W, 3]`."""
        size, map_scale = map_size(*image.shape[:2])
        total = logits = ids = None
        for scale in self.config.tta_scales:
            view = lite_input(image, scale * self.config.long_side)
            twins = torch.stack([view, view.flip(-1)]) if self.config.tta_flip else view[None]
            deep, likes = self.backbone(channels_last(twins))
            if ids is None:
                logits = (deep[0].mean((-2, -1)) @ self.weight.T + self.bias).numpy()
                ids = predicted_classes(logits) if class_ids is None else sorted(class_ids)
                ids = np.asarray(ids, np.int64)
            for twin, (features, like) in enumerate(zip(deep, likes, strict=True)):
                maps = self._maps(features, like, ids, size=size)
                maps = maps.flip(-1) if twin else maps
                total = maps if total is None else total + maps
        coarse, fine = (minmax(maps.numpy()) for maps in total)
        return Clues(coarse, fine, None, class_ids=ids, class_logits=logits, scale=map_scale)

    def _maps(
        self, features: Tensor, like: Tensor, ids: np.ndarray, size: tuple[int, int]
    ) -> Tensor:
        """Coarse and fine maps `[2, c, *size]` of one view."""
        if not len(ids):  # an image without tags
            return features.new_zeros(2, 0, *size)
        coarse = torch.einsum("cd,dhw->chw", self.weight[ids], features).relu()
        fine = refine(coarse, like, self.config.temperature, steps=self.config.steps)
        return F.interpolate(torch.stack([coarse, fine]), size=size, mode="bilinear")

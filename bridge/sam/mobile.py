"""MobileSAM (Zhang et al. 2023, arXiv 2306.14289): SAM's decoder behind a TinyViT of 6 M weights.

The encoder is timm's TinyViT-5M with the last stage at stride 1, so that an image of 1024 pixels
becomes 64 x 64 tokens as in SAM, and SAM's neck of two convolutions. The published file
(`mobile_sam.pt`) has the names of the original TinyViT code.
"""

from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

import bridge.runtime.torchvision_ops  # noqa: F401  (before segment_anything: see there)

# isort: split
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d

IMAGE_SIDE = 1024
WIDTH = 256  # channels of SAM's tokens
# A tensor that the published file has and no other SAM.
KEY = "image_encoder.layers.0.blocks.0.conv1.c.weight"


class TinyVitEncoder(nn.Module):
    """Image `[B, 3, 1024, 1024]`, normalised -> tokens `[B, 256, 64, 64]`."""

    def __init__(self):
        super().__init__()
        self.img_size = IMAGE_SIDE
        # TinyViT-5M. (By its class: MobileSAM's own package takes the name in timm's registry.)
        self.vit = TinyVit(embed_dims=(64, 128, 160, 320), num_heads=(2, 4, 5, 10), num_classes=0)
        self.vit.head = nn.Identity()
        self.vit.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(self.vit.num_features, WIDTH, 1, bias=False),
            LayerNorm2d(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            LayerNorm2d(WIDTH),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.neck(self.vit.forward_features(image))


def mobile_sam() -> Sam:
    """MobileSAM with random weights."""
    grid = (IMAGE_SIDE // 16,) * 2
    transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2048, num_heads=8)
    return Sam(
        TinyVitEncoder(),
        PromptEncoder(WIDTH, grid, (IMAGE_SIDE, IMAGE_SIDE), mask_in_chans=16),
        MaskDecoder(transformer_dim=WIDTH, transformer=transformer),
    )


def from_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `mobile_sam.pt` under the names of `mobile_sam`.

    The classifier of TinyViT, which SAM does not use, is left out.
    """
    unused = ("image_encoder.norm_head.", "image_encoder.head.")
    return {_rename(name): value for name, value in tensors.items() if not name.startswith(unused)}


def _rename(name: str) -> str:
    head, _, rest = name.partition(".")
    if head != "image_encoder" or rest.startswith("neck."):
        return name
    parts = rest.split(".")
    if parts[0] == "layers":
        # The original counts the step to the next stage to the stage before.
        later = parts[2] == "downsample"
        parts[:2] = ["stages", str(int(parts[1]) + later)]
    elif parts[:2] == ["patch_embed", "seq"]:
        parts[1:3] = ["conv1" if parts[2] == "0" else "conv2"]
    parts = ["conv" if part == "c" else part for part in parts]
    return ".".join([head, "vit", *parts])

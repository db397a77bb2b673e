"""A small random SAM of segment_anything's classes, and random images to try it on."""

from functools import partial

import torch

import bridge.runtime.torchvision_ops  # noqa: F401

# isort: split
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from experiments.bench.entry import random_image as blocky_image  # for the tests beside this

__all__ = ["HEIGHT", "WIDTH", "blocky_image", "small_sam"]
HEIGHT, WIDTH = 75, 110  # of the fixture `image`
MASK_THRESHOLD = 4.0


def small_sam(seed: int = 0, side: int = 128) -> Sam:
    """SAM with a one-block ViT encoder at `side` pixels; seeded, frozen, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        grid = (side // 16,) * 2
        encoder = ImageEncoderViT(
            img_size=side,
            embed_dim=32,
            depth=1,
            num_heads=2,
            out_chans=32,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=(0,),
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2)
        sam = Sam(
            encoder,
            PromptEncoder(32, grid, (side, side), mask_in_chans=4),
            MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=32),
        )
        for parameter in sam.mask_decoder.parameters():  # larger weights: prompts matter more
            parameter.data.mul_(2.0)
    # SamAutomaticMaskGenerator ignores limits of predicted IoU that are not positive.
    sam.mask_decoder.iou_prediction_head.layers[-1].bias.data += 10
    # A random decoder's logits are smooth: only a high threshold leaves masks of many shapes.
    sam.mask_threshold = MASK_THRESHOLD
    return sam.eval().requires_grad_(False)

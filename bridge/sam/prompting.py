"""Prompting SAM: one image, encoded once, and any number of points or boxes."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import bridge.runtime.torchvision_ops  # noqa: F401  (before segment_anything: see there)

# isort: split
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from bridge.sam.decoder import ImageDecoder, can_share, numbers_at_once

EncoderType = Literal["float32", "bfloat16", "float16"]


class _Resize(ResizeLongestSide):
    """SAM's resizing, which leaves the short side of an image of 1 x 3000 without a pixel."""

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        height, width = ResizeLongestSide.get_preprocess_shape(oldh, oldw, long_side_length)
        return max(height, 1), max(width, 1)


class PromptedImage:
    """One image, encoded once, and any number of prompts decoded in batches.

    Pixel coordinates of prompts are pixel indices of the original image, as `SamPredictor`'s.
    A decoder of `segment_anything`'s own class shares work between prompts (`ImageDecoder`); a
    subclass of it, as `sam_mini`'s, runs as it is.
    """

    @torch.no_grad()
    def __init__(self, sam: Sam, image: np.ndarray, encoder_dtype: EncoderType = "float32"):
        """image: uint8 RGB `[H, W, 3]`. encoder_dtype: of the image encoder's matrix products
        (`torch.autocast`; the weights stay float32, as does all that comes after the encoder)."""
        self.sam = sam
        self.size = image.shape[:2]
        self.predictor = SamPredictor(sam)
        self.predictor.transform = _Resize(sam.image_encoder.img_size)
        dtype = getattr(torch, encoder_dtype)
        with torch.autocast(sam.device.type, dtype, enabled=dtype != torch.float32):
            self.predictor.set_image(np.ascontiguousarray(image))
        self.predictor.features = self.predictor.features.float()
        self.shared = None
        if can_share(sam):
            no_mask = sam.prompt_encoder.no_mask_embed.weight[..., None, None]
            position = sam.prompt_encoder.get_dense_pe()
            self.shared = ImageDecoder(
                sam.mask_decoder, self.predictor.features, position, dense=no_mask
            )

    @torch.no_grad()
    def decode(
        self,
        points: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        tokens: Sequence[int] = (1, 2, 3),
    ) -> tuple[Tensor, Tensor]:
        """Low-resolution mask logits `[B, M, h, w]` and predicted IoU `[B, M]` of B prompts.

        points: float `[B, n, 2]` (x, y), all foreground; or boxes: float `[B, 4]` xyxy of pixel
        indices (the last column and row inside). tokens: the M masks that are wanted: 0 is SAM's
        single mask, 1 to 3 are its three masks for an ambiguous prompt.
        """
        sam, transform, device = self.sam, self.predictor.transform, self.sam.device
        prompt, corners = None, None
        if points is not None:
            coordinates = torch.as_tensor(
                transform.apply_coords(np.asarray(points), self.size), dtype=torch.float32
            )
            labels = torch.ones(coordinates.shape[:2], dtype=torch.int)
            prompt = (coordinates.to(device), labels.to(device))
        if boxes is not None:
            corners = transform.apply_boxes(np.asarray(boxes), self.size)
            corners = torch.as_tensor(corners, dtype=torch.float32, device=device)
        sparse, dense = sam.prompt_encoder(points=prompt, boxes=corners, masks=None)
        if self.shared is not None:
            return self.shared(sparse, tokens)
        logits, predicted_iou = sam.mask_decoder.predict_masks(
            image_embeddings=self.predictor.features,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
        return logits[:, list(tokens)], predicted_iou[:, list(tokens)]

    @torch.no_grad()
    def upsample(self, logits: Tensor) -> Tensor:
        """Mask logits `[n, h, w]` at the size of the image: `[n, H, W]`; the mask is logit > 0."""
        full = self.sam.postprocess_masks(logits[:, None], self.predictor.input_size, self.size)
        return full[:, 0]

    def upsample_step(self) -> int:
        """How many masks to upsample at once (`numbers_at_once`; at least one)."""
        side = max(self.sam.image_encoder.img_size, *self.size)
        return max(1, numbers_at_once(self.sam.device) // side**2)

"""Loading SAM and prompting one image many times.

The networks are `segment_anything`'s own classes: a published ViT-H/L/B checkpoint, MobileSAM
(`bridge.sam.mobile`), or the small `sam_mini` / `sam_mini_lite` of this package. All are frozen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import bridge.torchvision_ops  # noqa: F401  (before segment_anything: see there)

# isort: split
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam

from bridge.sam import mobile as sam_mobile
from bridge.sam.decoder import ImageDecoder, can_share, numbers_at_once
from bridge.weights.checkpoints import read_checkpoint
from weaksam_jax.errors import BadInput

EncoderType = Literal["float32", "bfloat16", "float16"]
MINI = ("sam_mini", "sam_mini_lite")
# Width of the image encoder -> name in the registry of segment_anything.
_BY_WIDTH = {1280: "vit_h", 1024: "vit_l", 768: "vit_b"}
_WIDTH_KEY = "image_encoder.patch_embed.proj.weight"


def load_sam(name_or_path: str | Path) -> Sam:
    """A frozen SAM on the CPU, float32, in eval mode.

    name_or_path: "sam_mini" or "sam_mini_lite", or the file of a published checkpoint
    (`sam_vit_h_4b8939.pth`, `sam_vit_l_0b3195.pth`, `sam_vit_b_01ec64.pth`, `mobile_sam.pt`); which
    one it is, the tensors tell. Raises `BadInput` when the file is missing, truncated or of another
    network.
    """
    if str(name_or_path) in MINI:
        from bridge.sam.mini import load_sam_mini

        sam = load_sam_mini(str(name_or_path))
    else:
        sam = _load_published(Path(name_or_path))
    return sam.eval().requires_grad_(False)


def _load_published(path: Path) -> Sam:
    names = "SAM checkpoint (ViT-H, L or B; or MobileSAM's mobile_sam.pt)"
    hint = f"give a published {names} or one of {', '.join(MINI)}"
    if not path.exists():
        raise BadInput(path, "is neither a file nor the name of a SAM", hint)
    tensors = read_checkpoint(path)
    width = tensors[_WIDTH_KEY].shape[0] if _WIDTH_KEY in tensors else None
    if sam_mobile.KEY in tensors:
        name, sam = "MobileSAM", sam_mobile.mobile_sam()
        tensors = sam_mobile.from_published(tensors)
    elif width in _BY_WIDTH:
        name = _BY_WIDTH[width]
        with torch.device("meta"):  # no time and memory for weights that are replaced below
            sam = sam_model_registry[name]()
        # The two buffers that are in no checkpoint: ImageNet mean and standard deviation, 0..255.
        sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)
        sam.pixel_std = torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1)
    else:
        raise BadInput(path, "holds no SAM of a published size", hint)
    expected = sam.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected
        or name not in tensors
        or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise BadInput(path, f"{len(wrong)} tensors do not fit {name}, first {wrong[0]}", hint)
    whole = {name: one.float() if one.is_floating_point() else one for name, one in tensors.items()}
    sam.load_state_dict(whole, assign=True)
    return sam


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
        dtype = getattr(torch, encoder_dtype)
        with torch.autocast(sam.device.type, dtype, enabled=dtype != torch.float32):
            self.predictor.set_image(np.ascontiguousarray(image))
        self.predictor.features = self.predictor.features.float()
        self.shared = None
        if can_share(sam):
            no_mask = sam.prompt_encoder.no_mask_embed.weight[..., None, None]
            position = sam.prompt_encoder.get_dense_pe()
            self.shared = ImageDecoder(sam.mask_decoder, self.predictor.features, position, no_mask)

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

"""SAM networks: which there are, and loading one, frozen.

All are `segment_anything`'s own classes: a published ViT-H/L/B checkpoint, MobileSAM
(`bridge.sam.mobile`), or the small `sam_mini` / `sam_mini_lite` of this package.
"""

from pathlib import Path

import torch

import bridge.runtime.torchvision_ops  # noqa: F401  (before segment_anything: see there)

# isort: split
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from bridge.sam import mobile
from bridge.sam.mini import load_sam_mini
from bridge.sam.mini.model import weights_path
from bridge.weights.checkpoints import filled, read_checkpoint
from weaksam_jax.data.pixel_statistics import IMAGENET_MEAN_255, IMAGENET_STD_255
from weaksam_jax.errors import BadInput
from weaksam_jax.supervision import Supervision, read_stated, saw

MINI = ("sam_mini", "sam_mini_lite")
# Width of the image encoder -> name in the registry of segment_anything.
_BY_WIDTH = {(1280,): "vit_h", (1024,): "vit_l", (768,): "vit_b"}
_WIDTH_KEY = "image_encoder.patch_embed.proj.weight"


def load_sam(name_or_path: str | Path) -> Sam:
    """A frozen SAM on the CPU, float32, in eval mode.

    name_or_path: "sam_mini" or "sam_mini_lite", or the file of a published checkpoint
    (`sam_vit_h_4b8939.pth`, `sam_vit_l_0b3195.pth`, `sam_vit_b_01ec64.pth`, `mobile_sam.pt`); which
    one it is, the tensors tell. Raises `BadInput` when the file is missing, truncated or of another
    network.
    """
    if str(name_or_path) in MINI:
        return load_sam_mini(str(name_or_path))
    return _load_published(Path(name_or_path))


def sam_supervision(name_or_path: str | Path) -> Supervision:
    """What a SAM has seen: of ours as its file says, of a published one by its layout."""
    if str(name_or_path) in MINI:
        return read_stated(weights_path(str(name_or_path)))
    return saw(["masks"], "masks of SA-1B, by its layout: SAM")


def _load_published(path: Path) -> Sam:
    names = "SAM checkpoint (ViT-H, L or B; or MobileSAM's mobile_sam.pt)"
    hint = f"give a published {names} or one of {', '.join(MINI)}"
    if not path.exists():
        raise BadInput(path, "is neither a file nor the name of a SAM", hint)
    tensors = read_checkpoint(path)
    width = tuple(tensors[_WIDTH_KEY].shape[:1]) if _WIDTH_KEY in tensors else ()
    if mobile.KEY in tensors:
        name, sam, tensors = "MobileSAM", mobile.mobile_sam(), mobile.from_published(tensors)
    elif width in _BY_WIDTH:
        name, sam = _BY_WIDTH[width], _empty_sam(_BY_WIDTH[width])
    else:
        raise BadInput(path, "holds no SAM of a published size", hint)
    return filled(sam, tensors, path, hint=f"taken for {name}: {hint}", assign=True)


def _empty_sam(name: str) -> Sam:
    """A network of the registry without memory for its weights, which are to be assigned."""
    with torch.device("meta"):
        sam = sam_model_registry[name]()
    # The two buffers that are in no checkpoint.
    sam.pixel_mean = torch.tensor(IMAGENET_MEAN_255).view(-1, 1, 1)
    sam.pixel_std = torch.tensor(IMAGENET_STD_255).view(-1, 1, 1)
    return sam

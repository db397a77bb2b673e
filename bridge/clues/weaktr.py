"""WeakTr as a source of clues: reading checkpoints, and multi-view inference on photographs."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bridge.clues.interface import Clues, map_size, minmax, predicted_classes
from bridge.clues.weaktr_net import FUSIONS, View, WeakTr, WeakTrConfig
from bridge.weights.checkpoints import fitted, read_tensors
from weaksam_jax.data.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD
from weaksam_jax.errors import BadInput, BadSetting

__all__ = ["View", "WeakTr", "WeakTrClues", "WeakTrConfig", "load_weaktr", "to_tensor"]

MAX_LONG = 640
# Of maps that are enlarged together (more at a time would not be faster).
PIXELS_AT_ONCE = 2**22
# What reading sizes off the shapes of another network raises.
MISFITS = (KeyError, ValueError, IndexError, TypeError, ArithmeticError)
MOST_LAYERS = 256
FUSION_PREFIX = "adaptive_attention_fusion."
PUBLISHED_DEPTH = 12
OFFICIAL_LAYERS = (8, 9)  # whose cross-attention the official code looks at: the 9th and 10th


def load_weaktr(path: str | Path, fusion: str = "auto") -> WeakTr:
    """A WeakTr in evaluation mode from a `.pth` (published key layout) or `.safetensors` file.

    Classes, sizes and the generation of the fusion are read off the names and shapes. fusion:
    "auto" takes the checkpoint's generation ("v3" or "v1"); asking for one it does not have is an
    error; "uniform" leaves the fusion weights aside and averages all maps, which is what WeakSAM's
    official code computes with the checkpoint that it links to. Raises `BadInput`, naming the keys,
    when anything else is missing, left over or of another shape.
    """
    if fusion not in ("auto", *FUSIONS):
        raise ValueError(f"fusion must be auto or one of {FUSIONS}, got {fusion!r}")
    state, metadata = read_tensors(path)
    try:
        config = read_config(state, metadata, fusion)
    except (*MISFITS, BadSetting) as error:
        hint = "give a WeakTr checkpoint (keys cls_token, pos_embed, patch_embed.proj, blocks, ...)"
        raise BadInput(path, f"is no WeakTr checkpoint ({error})", hint) from error
    if config.fusion == "uniform":
        state = {k: v for k, v in state.items() if not k.startswith(FUSION_PREFIX)}
    hint = "ask for the fusion that it holds or 'uniform', or give a WeakTr checkpoint"
    return fitted(lambda: WeakTr(config), state, path, hint=hint)


def read_config(state: dict[str, Tensor], metadata: dict[str, str], fusion: str) -> WeakTrConfig:
    """Sizes from names and shapes; fusion as in `load_weaktr`.

    Raises KeyError for a name that no WeakTr lacks, ValueError for a shape that none has.
    """
    _, classes, dim = state["cls_token"].shape
    grid = round((state["pos_embed"].shape[1] - classes) ** 0.5)
    blocks = [int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", key) for key in state) if m]
    if not blocks:
        raise KeyError("blocks.0")
    depth = 1 + max(blocks)
    if depth != len(set(blocks)) or depth > MOST_LAYERS:
        raise ValueError(f"{len(set(blocks))} layers numbered up to {max(blocks)}")
    stem, patch = "patch", 0
    if "patch_embed.proj.0.weight" in state:  # 2 n - 1 convolutions of 3 x 3 halve n times
        weights = [state[k] for k in state if k.startswith("patch_embed.proj.")]
        convolutions = sum(w.ndim == 4 and w.shape[-1] == 3 for w in weights)
        stem, patch = "conv", 2 ** ((convolutions + 1) // 2)
    else:
        patch = state["patch_embed.proj.weight"].shape[-1]
    found = metadata.get("fusion", "v3")
    heads = int(metadata.get("heads", max(1, dim // 64)))
    if FUSION_PREFIX + "attn_feat_ffn.0.weight" in state:
        heads = dim // state[FUSION_PREFIX + "attn_feat_ffn.0.weight"].shape[1]
    elif FUSION_PREFIX + "fc.0.weight" in state:
        found, heads = "v1", state[FUSION_PREFIX + "fc.0.weight"].shape[1] // depth
    fusion = found if fusion == "auto" else fusion
    reach = int(metadata["reach"]) if "reach" in metadata else None  # leaves no trace in the keys
    if fusion not in FUSIONS or heads < 1 or dim % heads or (reach or 0) < 0 or patch < 1:
        raise ValueError(f"fusion {fusion[:9]}, {heads} heads of {dim} channels, patch {patch}")
    return WeakTrConfig(
        classes,
        dim,
        heads,
        depth=depth,
        patch=patch,
        grid=grid,
        fusion=fusion,
        stem=stem,
        reach=reach,
    )


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 RGB `[H, W, 3]` -> float32 `[3, H, W]`, ImageNet-normalised."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


class WeakTrClues:
    """Clue network: WeakTr over several scales, each also mirrored.

    tta_scales: of the image (the first decides predicted classes; published: 1, 0.8, 1.2).
    cross_layers: which layers give cross-attention maps (0-based); None is the official choice,
    9th and 10th of 12, at the same relative depth in a network of another depth. resize_long: long
    side in pixels to which the image is brought before the views (None: its own size, but at most
    640, COCO's, as attention needs memory with the fourth power of the side). slots: the classes of
    the network that the data set has, in its order; ids and logits of the clues are the data set's
    (None: all).

    Memory: a scale and its mirrored twin are one batch, and the largest scale decides. Measured at
    the published size on a CPU beyond weights: 1.0 GB for 375 x 500 pixels, of which the attention
    maps are 0.64 GB; the maps of a square of 640 pixels are 3.1 GB (`WeakTr.maps`). The clues need
    8 (2 + M) c h w bytes for c present classes, M cross maps of each, h x w pixels of `map_size`,
    half of it while the views are computed: 0.15 GB in all for two classes, 375 x 500 pixels and
    the 48 cross maps of layers 5 to 12.
    """

    def __init__(
        self,
        model: WeakTr,
        tta_scales: tuple[float, ...] = (1.0, 0.8, 1.2),
        cross_layers: tuple[int, ...] | None = None,
        resize_long: int | None = None,
        slots: tuple[int, ...] | None = None,
    ):
        self.config, depth = model.config, model.config.depth  # not all of it shows in the weights
        self.model, self.tta_scales, self.resize_long = model.eval(), tta_scales, resize_long
        self.slots = tuple(range(model.config.classes)) if slots is None else slots
        self.cross_layers = (
            at_depth(OFFICIAL_LAYERS, depth) if cross_layers is None else cross_layers
        )
        if not all(0 <= layer < depth for layer in self.cross_layers):
            raise ValueError(f"cross_layers {self.cross_layers} of a network of {depth} layers")

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, class_ids: tuple[int, ...] | None = None) -> Clues:
        """Clues at the size of `map_size` from one pass over all views.

        image: uint8 RGB `[H, W, 3]`. class_ids: the present classes; None: those with a
        class-token logit above -0.5 in the first view (the best one at least). Per kind the views'
        maps are brought to that size (bilinear), un-mirrored, summed and min-max normalised.
        """
        size, map_scale = map_size(*image.shape[:2])
        device = self.model.cls_token.device
        total: list[Tensor] = []  # coarse, fine, cross
        slots, logits = np.asarray(self.slots), None
        ids = None if class_ids is None else np.asarray(sorted(class_ids), np.int64)
        for scale in self.tta_scales:
            view = to_tensor(self._resized(image, scale)).to(device)
            chosen = slots if ids is None else slots[ids]
            chosen = torch.as_tensor(chosen, device=device)
            out = self.model.maps(torch.stack([view, view.flip(-1)]), chosen)
            kinds = [out.coarse, out.fine, self._cross(out.cross)]
            if logits is None:
                logits = out.class_logits[0].float().cpu().numpy()[slots]
            if ids is None:
                ids = predicted_classes(logits)
                present = torch.as_tensor(ids, device=device)
                kinds = [kind.index_select(-3, present) for kind in kinds]
            if not total:
                shapes = [(*kind.shape[1:-2], *size) for kind in kinds]
                total = [torch.zeros(shape, device=device) for shape in shapes]
            for maps, kind in zip(total, kinds, strict=True):
                _add_at_size(maps, kind)
        coarse, fine, cross = (minmax(kind.cpu().numpy()) for kind in total)
        return Clues(coarse, fine, cross, class_ids=ids, class_logits=logits, scale=map_scale)

    def _resized(self, image: np.ndarray, scale: float) -> np.ndarray:
        """The image at that scale, each side at least a patch (PIL bicubic on the bytes)."""
        height, width = image.shape[:2]
        scale *= (self.resize_long or min(MAX_LONG, max(height, width))) / max(height, width)
        least = self.model.config.patch
        size = (max(least, round(width * scale)), max(least, round(height * scale)))
        if size == (width, height):
            return image
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))

    def _cross(self, cross: Tensor) -> Tensor:
        """Maps of the chosen layers `[B, heads * chosen, C, h, w]`, head-major."""
        by_layer = cross.unflatten(1, (self.model.config.heads, self.model.config.depth))
        return by_layer[:, :, list(self.cross_layers)].flatten(1, 2)


def at_depth(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Layers of the published network (0..11) at the same relative depth in one of `depth`."""
    scale = (depth - 1) / (PUBLISHED_DEPTH - 1)
    return tuple(sorted({round(layer * scale) for layer in layers}))


def _add_at_size(total: Tensor, maps: Tensor) -> None:
    """Adds a view's maps and its mirrored twin's, `[2, ..., h, w]`, to `total` `[..., H, W]`."""
    size = total.shape[-2:]
    flat, sums = maps.float().flatten(1, -3), total.flatten(0, -3)
    if not len(sums):  # an image without tags
        return
    # At least four, so that no part is one map alone: torch would take another kernel for it, of
    # other last bits than those of all maps together.
    step = max(4, PIXELS_AT_ONCE // (size[0] * size[1]))
    parts = -(-len(sums) // step)
    for part, own in zip(flat.tensor_split(parts, 1), sums.tensor_split(parts), strict=True):
        full = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        own += full[0] + full[1].flip(-1)

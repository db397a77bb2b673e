"""CLIP-ES as a source of clues (Lin et al., CVPR 2023, arXiv 2212.09506).

CLIP knows classes by their names, so nothing is trained: coarse = softmax GradCAM of a class
against the other present classes and a list of backgrounds; fine = that, spread by the attention
between patches. The network is open_clip's (extra `clip`), its weights are a file. Facts are from
the authors' repository (MIT licence; docs/provenance/proposals.md, section 5).

There is no map from a class token to patches, so `cross` is None. WeakSAM does not say what it took
for it, nor how it asked for a test image's classes; `ClipEs` takes CLIP's zero-shot probabilities.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.clues.interface import Clues, map_size, minmax, predicted_classes
from bridge.clues.weaktr import MAX_LONG, MISFITS, MOST_LAYERS
from bridge.runtime import torchvision_ops  # noqa: F401  (makes open_clip's torchvision importable)
from bridge.weights.checkpoints import fitted, read_tensors
from bridge.weights.torchscript import is_torchscript, torchscript_tensors
from weaksam_jax.errors import BadInput
from weaksam_jax.ranges import Layers, Rule, Settings, Share, Side

HINT = "give CLIP ViT-B/16 as OpenAI published it (ViT-B-16.pt) or a file of open_clip"
# Names beside the classes that a region may belong to; see `background_names`.
BACKGROUNDS = (
    *("ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river"),
    *("sea", "railway", "railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean"),
    *("road", "rock", "street", "valley", "bridge", "sign"),
)
# What CLIP-ES asks for instead of ambiguous class names of VOC and COCO.
SYNONYMS = {
    "bird": "bird avian",
    "chair": "chair seat",
    "person": "person with clothes,people,human",
    "tvmonitor": "tvmonitor screen",
    "tv": "tvmonitor screen",
    "backpack": "backpack,bag",
    "umbrella": "umbrella,parasol",
    "handbag": "handbag,purse",
    "tie": "necktie",
    "baseball glove": "glove",
    "spoon": "dessertspoon",
    "remote": "remote control",
    "hair drier": "hairdrier,blowdrier",
}

# Other braces would be fields of `str.format`.
PROMPT = Rule(lambda text: [text.count(one) for one in ("{", "}", "{}")] == [1] * 3, "one {}")


@dataclass(frozen=True)
class ClipConfig(Settings):
    """CLIP-ES; the defaults are the published ones."""

    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """quick_gelu for OpenAI's weights (CLIP-ES), gelu for most others of open_clip; the file
    does not say which."""
    prompt: Annotated[str, PROMPT] = "a clean origami {}."
    """With {} for the name of the class."""
    backgrounds: tuple[str, ...] = BACKGROUNDS
    """Names that stand for what is no class."""
    last_layers: Layers = 8
    """Layers whose attention between patches is averaged."""
    box_threshold: Share = 0.4
    """Share of a CAM's maximum around whose parts boxes are drawn."""
    resize_long: Side | None = None
    """Long side in pixels to which the image is brought, then stretched to whole patches [its
    own, at most 640]."""


def load_clip_es(
    path: str | Path,
    classes: tuple[str, ...],
    config: ClipConfig | None = None,
    device: torch.device | str = "cpu",
) -> "ClipEs":
    """CLIP-ES for these class names, from weights in OpenAI's or open_clip's layout.

    path: OpenAI's own archive (TorchScript; no code of it is run), a state dict, or safetensors.
    Sizes are read off the shapes. Raises `BadInput` when open_clip is not installed, and, naming
    the keys, when the file is another network.
    """
    config = config or ClipConfig()
    tensors = read_clip(path)
    model = build_clip(path, tensors, config.activation)
    return ClipEs(model.to(device), classes, config)


def read_clip(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, float32, of a CLIP file; `BadInput` when it is missing or not whole."""
    tensors = torchscript_tensors(path) if is_torchscript(path) else read_tensors(path)[0]
    # Numbers that OpenAI's archive holds, and the constant mask of the text's attention.
    no_weights = ("input_resolution", "context_length", "vocab_size", "attn_mask")
    return {
        name: value.float()
        for name, value in tensors.items()
        if name.rpartition(".")[2] not in no_weights
    }


def build_clip(path: str | Path, tensors: dict[str, Tensor], activation: str) -> nn.Module:
    """open_clip's CLIP with these weights, frozen."""
    try:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    except ImportError as error:
        hint = "pip install 'weaksam-jax[clip]'"
        raise BadInput("open_clip", f"is not installed ({error.name})", hint) from error
    try:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        side = patch * round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
        vocabulary, text_width = tensors["token_embedding.weight"].shape
        vision = CLIPVisionCfg(_blocks(tensors, "visual."), width, 64, 4.0, patch, side)
        text = CLIPTextCfg(
            context_length=len(tensors["positional_embedding"]),
            vocab_size=vocabulary,
            width=text_width,
            heads=text_width // 64,
            layers=_blocks(tensors, ""),
        )
        dim = tensors["text_projection"].shape[1]
        if width % 64 or text_width % 64 or not width or not text_width:
            raise ValueError(f"widths {width} and {text_width}, no multiples of 64")
        if not 0 < vision.layers <= MOST_LAYERS or not 0 < text.layers <= MOST_LAYERS:
            raise ValueError(f"{vision.layers} and {text.layers} layers")
    except MISFITS as error:
        raise BadInput(path, f"is no CLIP with a ViT ({error})", HINT) from error
    quick = activation == "quick_gelu"
    return fitted(lambda: CLIP(dim, vision, text, quick_gelu=quick), tensors, path, hint=HINT)


def _blocks(tensors: dict[str, Tensor], tower: str) -> int:
    start = tower + "transformer.resblocks."
    return len(
        {name.removeprefix(start).split(".")[0] for name in tensors if name[: len(start)] == start}
    )


def background_names(backgrounds: tuple[str, ...], classes: tuple[str, ...]) -> list[str]:
    """The backgrounds that are no word of a class name: "sign" is none beside "stop sign".

    Of `BACKGROUNDS` that leaves the published lists: all 25 for VOC, 23 for COCO.
    """
    words = {word for name in classes for word in name.split()}
    return [name for name in backgrounds if name not in words]


class ClipEs:
    """Clue network: CLIP-ES on one scale. coarse = GradCAM, fine = refined GradCAM, no cross maps.

    Memory: the attention of the last layers is summed as it comes, head-averaged, so a few P x P
    matrices for P patches.
    """

    def __init__(self, model: nn.Module, classes: tuple[str, ...], config: ClipConfig):
        self.model, self.classes, self.config = model, tuple(classes), config
        names = [SYNONYMS.get(name, name) for name in classes]
        self.texts = self._text_features(names)
        self.backgrounds = self._text_features(background_names(config.backgrounds, classes))

    @torch.no_grad()
    def _text_features(self, names: list[str]) -> Tensor:
        """Unit vectors `[n, D]` of the prompts of these names."""
        from open_clip.tokenizer import SimpleTokenizer

        tokenizer = SimpleTokenizer(context_length=self.model.context_length)
        prompts = [self.config.prompt.format(name) for name in names]
        tokens = tokenizer(prompts).to(self.model.visual.proj.device)
        return self.model.encode_text(tokens, normalize=True)

    def __call__(self, image: np.ndarray, class_ids: tuple[int, ...] | None = None) -> Clues:
        """Clues at the size of `map_size`; see `Clues`. image: uint8 RGB `[H, W, 3]`.

        class_logits are the log-odds of CLIP's zero-shot probabilities (of the class token) among
        all classes and backgrounds; class_ids None: those above -0.5, the best one at least.
        """
        size, map_scale = map_size(*image.shape[:2])
        pixels = self._input(image)
        with torch.no_grad():
            tokens, attention = self._all_but_last(pixels)
        block = self.model.visual.transformer.resblocks[-1]
        normed = block.ln_1(tokens).detach().requires_grad_()
        with torch.enable_grad():
            last, maps = _block_behind_norm(block, tokens, normed)
            features = self.model.visual.ln_post(last)[0]
            patches = self._image_feature(features[1:].mean(0))
        with torch.no_grad():
            attention = (attention + maps.detach()[0, 1:, 1:]) / self.config.last_layers
            logits = self._class_logits(self._image_feature(features[0]))
        ids = predicted_classes(logits) if class_ids is None else sorted(class_ids)
        ids = np.asarray(ids, np.int64)
        if not len(ids):  # an image without tags
            none = np.zeros((0, *size), np.float32)
            return Clues(none, none, None, class_ids=ids, class_logits=logits, scale=map_scale)
        texts = torch.cat([self.texts[ids], self.backgrounds])
        grid = tuple(side // self.model.visual.patch_size[0] for side in pixels.shape[-2:])
        with torch.enable_grad():
            cams = grad_cams(self._similarity(patches, texts), normed, len(ids))
        cams = minmax(cams.unflatten(1, grid).cpu().numpy())
        masks = np.stack([box_mask(cam, self.config.box_threshold) for cam in cams])
        inside = torch.from_numpy(cams * masks).to(attention.device).flatten(1)
        fine = (inside @ spread_matrix(attention).T).unflatten(1, grid).cpu()
        both = torch.stack([torch.from_numpy(cams), fine])
        both = F.interpolate(both, size=size, mode="bilinear", align_corners=False)
        coarse, fine = minmax(both.numpy())
        return Clues(coarse, fine, cross=None, class_ids=ids, class_logits=logits, scale=map_scale)

    def _input(self, image: np.ndarray) -> Tensor:
        """`[1, 3, h, w]`, CLIP-normalised, sides rounded up to whole patches (PIL bicubic)."""
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        height, width = image.shape[:2]
        longest = max(height, width)
        scale = (self.config.resize_long or min(MAX_LONG, longest)) / longest
        patch = self.model.visual.patch_size[0]
        size = tuple(int(np.ceil(side * scale / patch)) * patch for side in (width, height))
        pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        mean, std = (np.float32(v) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
        normalised = (pixels.astype(np.float32) / 255 - mean) / std
        device = self.model.visual.proj.device
        return torch.from_numpy(normalised).permute(2, 0, 1)[None].to(device)

    def _all_but_last(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[1, 1 + P, D]` in front of the last block; attention between patches `[P, P]`.

        The attention is the sum over the last layers but the last one, averaged over heads.
        """
        visual = self.model.visual
        patches = visual.conv1(pixels)
        grid = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), patches], dim=1)
        tokens = visual.ln_pre(tokens + position_table(visual.positional_embedding, grid))
        blocks = visual.transformer.resblocks
        first = len(blocks) - self.config.last_layers
        attention = tokens.new_zeros(patches.shape[1], patches.shape[1])
        for index, block in enumerate(blocks[:-1]):
            tokens, maps = _block_behind_norm(block, tokens, block.ln_1(tokens))
            if index >= first:
                attention += maps[0, 1:, 1:]
        return tokens, attention

    def _image_feature(self, token: Tensor) -> Tensor:
        return F.normalize(token @ self.model.visual.proj, dim=-1)

    def _similarity(self, feature: Tensor, texts: Tensor) -> Tensor:
        """Scaled cosines `[n]`."""
        return self.model.logit_scale.exp() * (texts @ feature)

    def _class_logits(self, feature: Tensor) -> np.ndarray:
        """Log-odds float32 `[C]` of the softmax over all classes and backgrounds."""
        scores = self._similarity(feature, torch.cat([self.texts, self.backgrounds]))
        count = len(self.texts)
        others = scores.repeat(count, 1)
        others.diagonal().fill_(-torch.inf)
        return (scores[:count] - others.logsumexp(1)).cpu().numpy()


def _block_behind_norm(block: nn.Module, tokens: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
    """A block's output, given its input and the first norm of that; maps `[1, N, N]`, the mean of
    its heads."""
    heard, maps = block.attn(normed, normed, normed, need_weights=True)
    tokens = tokens + block.ls_1(heard)
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens))), maps


def position_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embedding `[1 + g * g, D]` -> `[1 + h * w, D]`; the patches' part is bilinear."""
    side = round((len(table) - 1) ** 0.5)
    square = table[1:].T.unflatten(1, (side, side))[None]
    resized = F.interpolate(square, size=tuple(grid), mode="bilinear", align_corners=False)
    return torch.cat([table[:1], resized[0].flatten(1).T])


def grad_cams(scores: Tensor, normed: Tensor, count: int) -> Tensor:
    """GradCAMs float32 `[count, P]`, not below 0, of the softmax of scores `[n]`.

    normed: `[1, 1 + P, D]`, what the scores were computed from (first norm of the last block). The
    channel weights are the mean gradient over patches. It is the gradient of log p, which is that
    of the probability p divided by p, so that the normalised maps are the same.
    """
    log_p = scores.double().log_softmax(0)  # the gradient has 1 - p, and float32 rounds p to 1
    cams = []
    for index in range(count):
        (gradient,) = torch.autograd.grad(log_p[index], normed, retain_graph=True)
        cams.append((normed.detach()[0, 1:] @ gradient[0, 1:].mean(0)).relu())
    return torch.stack(cams)


def spread_matrix(attention: Tensor) -> Tensor:
    """Attention between patches `[P, P]` made nearly doubly stochastic, symmetric, and squared."""
    for _ in range(3):  # Sinkhorn's steps, columns first
        attention = attention / attention.sum(0, keepdim=True)
        attention = attention / attention.sum(1, keepdim=True)
    attention = (attention + attention.T) / 2
    return attention @ attention


def box_mask(cam: np.ndarray, threshold: float) -> np.ndarray:
    """Bool `[h, w]`: the boxes of the 8-connected parts above that share of the maximum.

    The official code leaves out the last row and column of a map; here a box has all its cells.
    """
    mask = np.zeros(cam.shape, bool)
    above = (cam > threshold * cam.max()).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    for x, y, width, height, _ in stats[1:]:
        mask[y : y + height, x : x + width] = True
    return mask

"""sam_mini: segment_anything's classes at small size, with a convolutional image encoder.

The two-way transformer and `Sam` are segment_anything's own, the prompt encoder and the mask
decoder subclasses of its own. Three things differ from a published SAM, each to learn from
minutes of training and to answer a hundred prompts quickly on a CPU. The image encoder is a
convolutional pyramid, because a plain ViT learns too slowly. The prompt encoder also draws the
prompt on the token grid (`TracePromptEncoder`). The mask decoder gains a detail term
(`DetailMaskDecoder`), so that the transformer can work on 16-pixel tokens.

`SamPredictor` and `SamAutomaticMaskGenerator` run on the result unchanged.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bridge.runtime.torchvision_ops  # noqa: F401  (before segment_anything: see there)

# isort: split
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP

from bridge.weights.checkpoints import filled, read_tensors
from bridge.weights.lite0 import lite0_network
from weaksam_jax.data.pixel_statistics import LITE0_MEAN, LITE0_STD
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path
from weaksam_jax.supervision import saw

TOKEN_DIM = 128
DETAIL_DIM = 32
TOKEN_STRIDE = 16
TRACE_MAPS = 6
# name of the weights -> (encoder, input pixels, stride of the masks)
VARIANTS = {"sam_mini": ("conv", 256, 2), "sam_mini_lite": ("lite0", 256, 2)}
_SCENES = "masks of drawn scenes"
# What each is trained on (the files of the package say so, too).
SEEN = {
    "sam_mini": saw(["masks"], f"{_SCENES} (bridge/sam/mini/README.md)"),
    "sam_mini_lite": saw(
        ["masks", "tags"],
        f"{_SCENES} and segments of photographs, over EfficientNet-Lite0 (ImageNet classes)",
    ),
}


def conv_bn(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; keeps the size at stride 1."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, basic block)."""

    def __init__(self, width: int):
        super().__init__()
        self.first = conv_bn(width, width)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class ConvBackbone(nn.Module):
    """Image [B,3,H,W] -> features at strides 2, 4, 8, 16, 32."""

    channels = (24, 40, 64, 112, 160)
    depths = (0, 1, 1, 2, 2)

    def __init__(self):
        super().__init__()
        widths = (3, *self.channels)
        self.stages = nn.ModuleList(
            nn.Sequential(conv_bn(c_in, c_out, stride=2), *(Residual(c_out) for _ in range(depth)))
            for c_in, c_out, depth in zip(widths[:-1], widths[1:], self.depths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Lite0Backbone(nn.Module):
    """Frozen EfficientNet-Lite0 (ImageNet) features at strides 2, 4, 8, 16, 32.

    The weights come at run time from the optional package and are no part of this model's
    state: their package states no licence, so they are neither saved nor shipped.
    Input is what `Sam.preprocess` makes with Lite0's own normalisation, (x - 127) / 128.
    """

    channels = (16, 24, 40, 112, 320)
    last_blocks = (0, 2, 4, 10, 15)  # of the 16 blocks: the deepest at each stride

    def __init__(self):
        super().__init__()
        # A list hides the network from parameters(), state_dict() and train().
        self._frozen = [lite0_network()]

    def _apply(self, fn, recurse=True):
        self._frozen[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        net, features = self._frozen[0], []
        x = net._swish(net._bn0(net._conv_stem(x)))
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in self.last_blocks:
                features.append(x)
        return features


class PyramidEncoder(nn.Module):
    """Backbone and top-down neck; packs two maps into the one tensor SAM passes around.

    Image [B,3,S,S] -> [B, 128 + 32 r^2, S/16, S/16]: first the tokens, then the detail map
    [B, 32, S/stride, S/stride] folded by pixel_unshuffle with r = 16 / stride.
    """

    def __init__(self, backbone: nn.Module, img_size: int, detail_stride: int):
        super().__init__()
        self.img_size = img_size
        self.backbone = backbone
        self.fold = TOKEN_STRIDE // detail_stride
        levels = {2: (0, 1, 2), 4: (1, 2)}[detail_stride]
        widths = (32, 48, 64)
        self.levels = levels
        c = backbone.channels
        self.top = conv_bn(c[4], TOKEN_DIM, 1)
        self.lateral = conv_bn(c[3], TOKEN_DIM, 1)
        self.mix = nn.Sequential(Residual(TOKEN_DIM), Residual(TOKEN_DIM))
        # SAM's neck ends in this norm too: it keeps tokens from drowning the position codes.
        self.tokens = nn.Sequential(nn.Conv2d(TOKEN_DIM, TOKEN_DIM, 1), LayerNorm2d(TOKEN_DIM))
        above = {level: TOKEN_DIM if level == 2 else widths[level + 1] for level in levels}
        self.down = nn.ModuleDict({str(i): nn.Conv2d(above[i], widths[i], 1) for i in levels})
        self.side = nn.ModuleDict({str(i): nn.Conv2d(c[i], widths[i], 1) for i in levels})
        self.join = nn.ModuleDict({str(i): conv_bn(widths[i], widths[i]) for i in levels})
        self.detail = nn.Conv2d(widths[levels[0]], DETAIL_DIM, 3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.backbone(image.contiguous(memory_format=torch.channels_last))
        x = self.mix(self.lateral(features[3]) + double(self.top(features[4])))
        tokens = self.tokens(x)
        for level in reversed(self.levels):
            key = str(level)
            x = self.join[key](double(self.down[key](x)) + self.side[key](features[level]))
        return torch.cat([tokens, F.pixel_unshuffle(self.detail(x), self.fold)], dim=1)


def double(x: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,C,2h,2w], bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class TracePromptEncoder(PromptEncoder):
    """SAM's prompt encoder whose dense output also shows where the prompt lies.

    SAM tells the image tokens about a point only through attention, which a model trained for
    minutes does not learn. Here the dense embedding gets a linear image of six maps on the
    token grid: positive points as bumps of three widths, negative points as one, a box as
    the share of every cell that it covers and as a bump (the click maps of interactive
    segmentation, e.g. Xu et al. 2016).
    """

    widths = (0.03, 0.1, 0.3)  # of the bumps, in image sides

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.trace = nn.Conv2d(TRACE_MAPS, self.embed_dim, 1)
        nn.init.normal_(self.trace.weight)  # as loud as the tokens

    def forward(self, points, boxes, masks):
        """As SAM's: sparse [P, n, D]; dense [P, D + 6, h, w], the maps themselves last."""
        sparse, dense = super().forward(points, boxes, masks)
        maps = self.maps(points, boxes, len(sparse))
        return sparse, torch.cat([dense + self.trace(maps), maps], dim=1)

    @torch.no_grad()
    def maps(self, points, boxes, prompts: int) -> Tensor:
        """Six maps per prompt of values in 0..1: [P, 6, h, w]."""
        (high, wide), (rows, columns) = self.input_image_size, self.image_embedding_size
        device = self.no_mask_embed.weight.device
        y = (torch.arange(rows, device=device) + 0.5)[:, None] / rows
        x = (torch.arange(columns, device=device) + 0.5)[None] / columns
        out = torch.zeros(prompts, TRACE_MAPS, rows, columns, device=device)
        if points is not None:
            place, label = points[0][..., None, None], points[1][..., None, None]
            far = (x - place[:, :, 0] / wide) ** 2 + (y - place[:, :, 1] / high) ** 2
            for i, width in enumerate(self.widths):
                out[:, i] = (torch.exp(-far / width**2) * (label == 1)).amax(1)
            out[:, i + 1] = (torch.exp(-far / self.widths[1] ** 2) * (label == 0)).amax(1)
        if boxes is not None:
            x0, y0, x1, y1 = (v[:, None, None] for v in boxes.reshape(-1, 4).unbind(1))
            left, right = (torch.arange(columns, device=device) + i for i in (0, 1))
            upper, lower = (torch.arange(rows, device=device)[:, None] + i for i in (0, 1))
            across = covered(left, right, x0 * columns / wide, end=x1 * columns / wide)
            down = covered(upper, lower, y0 * rows / high, end=y1 * rows / high)
            # In half sides from the centre: below 1 is inside.
            u = (2 * x * wide - x0 - x1).abs() / (x1 - x0).clamp(min=1)
            v = (2 * y * high - y0 - y1).abs() / (y1 - y0).clamp(min=1)
            out[:, -2] = down * across
            out[:, -1] = torch.exp(-(u**2) - v**2)
        return out


def covered(low: Tensor, high: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Share of the unit cells low..high that the interval start..end covers."""
    return (torch.minimum(high, end) - torch.maximum(low, start)).clamp(min=0)


class DetailMaskDecoder(MaskDecoder):
    """SAM's mask decoder plus a detail term shared by all prompts of an image.

    SAM: mask = h . up(tokens), with h from a mask token and `up` run per prompt.
    Here: mask = h . up(tokens) + g . detail, with g from the same mask token and `detail`
    [32, S/stride, S/stride] computed once per image. Both terms are linear in their map, so
    the second costs one matrix product (the dynamic-filter idea of YOLACT and CondInst).
    To g is added a linear image of the mean detail under the prompt: "what looks like here".
    """

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.detail_mlps = nn.ModuleList(
            MLP(self.transformer_dim, self.transformer_dim, DETAIL_DIM, 2)
            for _ in range(self.num_mask_tokens)
        )
        alike = 0.2 * torch.eye(DETAIL_DIM).repeat(self.num_mask_tokens, 1, 1)
        self.alike = nn.Parameter(alike)

    def predict_masks(
        self, image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
    ):
        """As SAM's; also takes B > 1 packed embeddings, with P/B prompts for each in turn.

        image_embeddings [B, 128 + 32 r^2, h, w]; prompts [P, n, 128] and [P, 128 + 6, h, w].
        Returns mask logits [P, 4, h r, w r] and predicted IoU [P, 4].
        """
        images, prompts = len(image_embeddings), len(sparse_prompt_embeddings)
        tokens, folded = image_embeddings.split(
            [self.transformer_dim, image_embeddings.shape[1] - self.transformer_dim], dim=1
        )
        detail = F.pixel_shuffle(folded, round((folded.shape[1] / DETAIL_DIM) ** 0.5))
        queries = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        queries = queries.expand(prompts, -1, -1)
        queries = torch.cat([queries, sparse_prompt_embeddings], dim=1)
        dense, maps = dense_prompt_embeddings.split([self.transformer_dim, TRACE_MAPS], dim=1)
        source = tokens.repeat_interleave(prompts // images, 0) + dense
        hidden, source = self.transformer(source, image_pe.expand_as(source), queries)
        mask_tokens = hidden[:, 1 : 1 + self.num_mask_tokens]

        source = source.transpose(1, 2).unflatten(2, tokens.shape[2:])
        coarse = _filter(self.output_hypernetworks_mlps, mask_tokens, self.output_upscaling(source))
        here = mean_under(maps[:, 0] + maps[:, -2], detail)
        g = _run_each(self.detail_mlps, mask_tokens) + torch.einsum("pc,tcd->ptd", here, self.alike)
        fine = (g.reshape(images, -1, DETAIL_DIM) @ detail.flatten(2)).reshape(
            prompts, -1, *detail.shape[2:]
        )
        if coarse.shape != fine.shape:
            coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
        return coarse + fine, self.iou_prediction_head(hidden[:, 0])


def mean_under(weights: Tensor, detail: Tensor) -> Tensor:
    """Mean of detail [B, C, H, W] under token-grid weights [P, h, w], P/B in turn: [P, C]."""
    weights = weights / weights.sum((1, 2), keepdim=True).clamp(min=1e-6)
    low = F.adaptive_avg_pool2d(detail, weights.shape[1:]).flatten(2).transpose(1, 2)
    return (weights.flatten(1).unflatten(0, (len(detail), -1)).to(low.dtype) @ low).flatten(0, 1)


def _run_each(mlps: nn.ModuleList, tokens: Tensor) -> Tensor:
    """MLP number i on token number i: [P, 4, D] -> [P, 4, C]."""
    return torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(mlps)], dim=1)


def _filter(mlps: nn.ModuleList, tokens: Tensor, maps: Tensor) -> Tensor:
    """Maps [P, C, h, w] under the filters of [P, 4, D] tokens -> [P, 4, h, w]."""
    return (_run_each(mlps, tokens) @ maps.flatten(2)).unflatten(2, maps.shape[2:])


@torch.no_grad()
def start_local(transformer: TwoWayTransformer, gain: float = 2.5) -> None:
    """Start every cross attention between prompts and image as attention to the near.

    With equal query and key projections the product of two position codes is a bump around
    the same place. From random projections a small model sits on the plateau of empty masks
    for hundreds of steps before it finds that out.
    """
    crossings = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        crossings += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in crossings:
        attention.q_proj.weight.mul_(gain)
        attention.k_proj.weight.copy_(attention.q_proj.weight)


@torch.no_grad()
def start_loud(decoder: MaskDecoder, gain: float = 4.0) -> None:
    """Start the coarse mask term at the size of the detail term, not a hundredth of it."""
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.mul_(gain)
    decoder.output_upscaling[0].weight.mul_(gain)
    decoder.output_upscaling[3].weight.mul_(gain)


def build_sam_mini(encoder: str = "conv", img_size: int = 256, detail_stride: int = 2) -> Sam:
    """An untrained sam_mini. `encoder` is "conv" or "lite0" (see the two backbones)."""
    backbone = {"conv": ConvBackbone, "lite0": Lite0Backbone}[encoder]()
    grid = (img_size // TOKEN_STRIDE,) * 2
    transformer = TwoWayTransformer(depth=2, embedding_dim=TOKEN_DIM, mlp_dim=256, num_heads=4)
    start_local(transformer)
    sam = Sam(
        image_encoder=PyramidEncoder(backbone, img_size, detail_stride),
        prompt_encoder=TracePromptEncoder(TOKEN_DIM, grid, (img_size, img_size), mask_in_chans=16),
        mask_decoder=DetailMaskDecoder(
            transformer_dim=TOKEN_DIM, transformer=transformer, iou_head_hidden_dim=128
        ),
    )
    start_loud(sam.mask_decoder)
    if encoder == "lite0":
        sam.pixel_mean.fill_(LITE0_MEAN)
        sam.pixel_std.fill_(LITE0_STD)
    return sam


def weights_path(name: str) -> Path:
    """Where the weights of `name` lie in the installed package."""
    return Path(str(resources.files("bridge.sam.mini") / f"{name}.safetensors"))


def load_sam_mini(name: str = "sam_mini", path: str | Path | None = None) -> Sam:
    """A trained sam_mini on the CPU, in eval mode and without gradients.

    name: "sam_mini" (own encoder, drawn images) or "sam_mini_lite" (Lite0 features,
    photographs). path: other weights of the same shape than the package's.
    """
    if name not in VARIANTS:
        raise BadInput(name, "no such sam_mini", f"choose one of {', '.join(VARIANTS)}")
    path = Path(path) if path else weights_path(name)
    hint = "restore the file from the repository or train it anew (bridge/sam/mini/README.md)"
    return filled(build_sam_mini(*VARIANTS[name]), read_tensors(path)[0], path, hint=hint)


def save_weights(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a state_dict as half-precision safetensors, atomically."""
    from safetensors.torch import save_file

    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        save_file({k: v.contiguous() for k, v in half.items()}, temporary, metadata)

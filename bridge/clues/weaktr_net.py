"""WeakTr: a vision transformer with one token per class, and its attention fused into CAMs.

Written from the description in the WeakTr paper (arXiv 2304.01184) and the facts of its published
checkpoints (docs/provenance/proposals.md, section 1), whose key layout `WeakTr.state_dict()` has.
Sizes are free (`WeakTrConfig`); the defaults are the published network (DeiT-S, patch 16).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weaksam_jax.ranges import Layers, Rate, Settings, Side, Width, integers

Fusion = Literal["v3", "v1", "uniform"]
FUSIONS = get_args(Fusion)
Stem = Literal["patch", "conv"]
Reach = Annotated[int, integers(0, 1000)]


@dataclass(frozen=True)
class WeakTrConfig(Settings):
    """Sizes of the network. The defaults are those of the published checkpoints.

    classes: class tokens C. patch: side of a patch in pixels. grid: side of the position
    embedding's grid. fusion: "v3" (weights from pooled attention outputs), "v1" (from pooled
    attention maps) or "uniform" (plain mean, no weights). stem: "patch" (one convolution, the
    published form) or "conv" (3 x 3 convolutions, for training from scratch). reach: patches attend
    to patches at most so many rows and columns away, and to no class token; None: to everything
    (the published form). A network that starts from ImageNet weights looks where things are; one
    from scratch on little data is free to put its evidence for a class anywhere when every patch
    knows the whole image, and puts it beside the things.
    last_layers: the cross maps of so many last layers make the seeds of the fine map; None: of all
    (WeakTr). Patch-to-patch maps are always of all layers.
    drop_path: rate of the last block, growing linearly from 0; only acts in training.
    """

    classes: Width
    dim: Width = 384
    heads: Layers = 6
    depth: Layers = 12
    patch: Side = 16
    grid: Side = 14
    fusion: Fusion = "v3"
    stem: Stem = "patch"
    drop_path: Rate = 0.0
    reach: Reach | None = None
    last_layers: Layers | None = None


@dataclass(frozen=True)
class View:
    """What the network says about one view; h x w patches.

    class_logits, coarse_logits, fine_logits: `[C]`. coarse, fine: `[C, h, w]`. cross:
    `[heads * layers, C, h, w]`, index = head * layers + layer. From `WeakTr.maps` every field has
    a leading batch axis.
    """

    class_logits: Tensor
    coarse_logits: Tensor
    fine_logits: Tensor
    coarse: Tensor
    fine: Tensor
    cross: Tensor


class Attention(nn.Module):
    """Self-attention that also returns its softmax maps."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """tokens `[B, N, D]`, hidden: bool `[N, N]`, what each token (row) may not attend to ->
        projected output `[B, N, D]`, maps `[B, heads, N, N]`."""
        batch, count, dim = tokens.shape
        parts = self.qkv(tokens).view(batch, count, 3, self.heads, dim // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = (q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        maps = scores.softmax(-1)
        return self.proj((maps @ v).transpose(1, 2).reshape(batch, count, dim)), maps


class Mlp(nn.Module):
    """Two layers with GELU, four times as wide inside."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block; also returns the attention branch's output and maps."""

    def __init__(self, dim: int, heads: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        output, maps = self.attn(self.norm1(tokens), hidden)
        tokens = tokens + self._drop(output)
        return tokens + self._drop(self.mlp(self.norm2(tokens))), output, maps

    def _drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth: the branch of a whole sample is left out."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep) / keep


class FusionV3(nn.Module):
    """Weights of the maps from the attention branches' outputs (WeakTr, current generation)."""

    def __init__(self, head_dim: int, maps: int, reduction: int = 8):
        super().__init__()
        # At least 4: a hidden layer of one or two units tends to start, and stay, at zero.
        feature, head = max(1, head_dim // reduction), max(4, maps // reduction)
        self.attn_head_ffn = nn.Sequential(
            nn.Linear(maps, head, bias=False), nn.ReLU(), nn.Linear(head, maps, bias=False)
        )
        # Two linear layers with nothing between them: so it is published.
        self.attn_feat_ffn = nn.Sequential(nn.Linear(head_dim, feature), nn.Linear(feature, 1))

    def forward(self, outputs: list[Tensor], attention: list[Tensor]) -> Tensor:
        """outputs: `[B, N, D]` per layer -> weights `[B, heads * layers]` in (0, 1).

        The channels are read as (D / heads, heads), so the head is the fastest index. That is not
        how attention lays its heads out, but it is what the checkpoints were trained with.
        """
        heads = attention[0].shape[1]
        pooled = [output.amax(1).unflatten(1, (-1, heads)).transpose(1, 2) for output in outputs]
        scalars = self.attn_feat_ffn(torch.stack(pooled, dim=2)).flatten(1)
        return self.attn_head_ffn(scalars).sigmoid()


class FusionV1(nn.Module):
    """Weights of the maps from each map's mean (WeakTr, first generation)."""

    def __init__(self, maps: int, reduction: int = 4):
        super().__init__()
        inner = max(1, maps // reduction)
        self.fc = nn.Sequential(
            nn.Linear(maps, inner, bias=False), nn.ReLU(), nn.Linear(inner, maps, bias=False)
        )

    def forward(self, outputs: list[Tensor], attention: list[Tensor]) -> Tensor:
        """attention: `[B, heads, N, N]` per layer -> weights `[B, heads * layers]` in (0, 1)."""
        means = torch.stack([maps.mean((-2, -1)) for maps in attention], dim=2)
        return self.fc(means.flatten(1)).sigmoid()


class PatchEmbed(nn.Module):
    """Image to patch tokens `[B, D, h, w]`; a remainder at the right and bottom is dropped."""

    def __init__(self, config: WeakTrConfig):
        super().__init__()
        dim, patch = config.dim, config.patch
        if config.stem == "patch":
            self.proj = nn.Conv2d(3, dim, patch, stride=patch)
            return
        steps = patch.bit_length() - 1
        if config.stem != "conv" or patch != 2**steps:
            raise ValueError(f"stem {config.stem!r} with patch {patch} is not known")
        widths = [3] + [max(16, dim // 2 ** (steps - i)) for i in range(1, steps + 1)]
        layers = _convolution(widths[0], widths[1], stride=2)
        for wide, next_wide in pairwise(widths[1:]):
            layers += _convolution(wide, next_wide, stride=2)
            layers += _convolution(next_wide, next_wide, stride=1)
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, 1))
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        if isinstance(self.proj, nn.Sequential):
            height, width = (side // self.patch * self.patch for side in images.shape[-2:])
            images = images[..., :height, :width]
        return self.proj(images)


class WeakTr(nn.Module):
    """The network. Input: `[B, 3, H, W]`, ImageNet-normalised, any size of at least one patch."""

    def __init__(self, config: WeakTrConfig):
        super().__init__()
        if config.fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {FUSIONS}, got {config.fusion!r}")
        if config.last_layers is not None and not 0 < config.last_layers <= config.depth:
            raise ValueError(f"last_layers {config.last_layers} of {config.depth} layers")
        self.config = config
        dim, maps = config.dim, config.heads * config.depth
        self.cls_token = nn.Parameter(torch.zeros(1, config.classes, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.classes + config.grid**2, dim))
        self.patch_embed = PatchEmbed(config)
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(dim, config.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)  # in the checkpoints, but never applied
        self.head = nn.Conv2d(dim, config.classes, 3, padding=1)
        if config.fusion == "v3":
            self.adaptive_attention_fusion = FusionV3(dim // config.heads, maps)
        elif config.fusion == "v1":
            self.adaptive_attention_fusion = FusionV1(maps)
        self.apply(_initialise)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor) -> View:
        """The view `[1, 3, H, W]`, fields without a batch axis."""
        if len(image) != 1:
            raise ValueError(f"one view at a time, got {len(image)}; see WeakTr.maps")
        batch = self.maps(image)
        return View(**{name: getattr(batch, name)[0] for name in View.__dataclass_fields__})

    def maps(self, images: Tensor, classes: Tensor | None = None) -> View:
        """Logits and maps of a batch; `classes` restricts the maps (not the logits) to these.

        Attention, its outputs and the coarse CAM are detached before the fusion, so the fine
        logits train nothing but the fusion weights (WeakTr, section 3.3). With `classes` the fine
        logits are those of these classes only.

        Memory: every layer's attention `[B, heads, N, N]` is kept once until the fusion weights are
        known, so heads * depth * N^2 * 4 bytes per view (0.31 GB at 450 x 600 pixels, 20 classes
        and the published size), and one layer's more while it works.
        """
        count = self.config.classes
        patches, (height, width) = self._embed(images)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = tokens + self._position(images)
        hidden = self._hidden(height, width)
        outputs, attention = [], []
        for block in self.blocks:
            tokens, output, maps = block(tokens, hidden)
            outputs.append(output.detach())
            attention.append(maps.detach())
        grid = tokens[:, count:].transpose(1, 2).unflatten(2, (height, width))
        raw = self.head(grid)
        rows = torch.arange(count, device=raw.device) if classes is None else classes
        coarse = raw.detach()[:, rows].relu()
        cross = torch.stack([maps[:, :, rows, count:] for maps in attention], dim=2)
        fine = self._fuse(outputs, attention, cross, coarse=coarse)
        return View(
            class_logits=tokens[:, :count].mean(-1),
            coarse_logits=raw.mean((-2, -1)),
            fine_logits=fine.mean((-2, -1)),
            coarse=coarse,
            fine=fine,
            cross=cross.flatten(1, 2).unflatten(-1, (height, width)),
        )

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        patches = self.patch_embed(images)
        return patches.flatten(2).transpose(1, 2), patches.shape[-2:]

    def _hidden(self, height: int, width: int) -> Tensor | None:
        """Bool `[N, N]`: what `reach` hides from each token; None where nothing is hidden."""
        reach, count = self.config.reach, self.config.classes
        if reach is None:
            return None
        rows, columns = (torch.arange(n, device=self.pos_embed.device) for n in (height, width))
        far_rows = (rows[:, None] - rows).abs() > reach
        far_columns = (columns[:, None] - columns).abs() > reach
        far = far_rows[:, None, :, None] | far_columns[None, :, None, :]
        hidden = far.reshape(height * width, height * width)
        hidden = F.pad(hidden, (count, 0), value=True)  # patches see no class token
        return F.pad(hidden, (0, 0, count, 0), value=False)  # class tokens see everything

    def _position(self, images: Tensor) -> Tensor:
        """Position embedding `[1, C + h * w, D]` for images of that size.

        Resized by scale factors with 0.1 added, as the checkpoints were trained and tested; asking
        for the size instead samples other places.
        """
        count, grid, patch = self.config.classes, self.config.grid, self.config.patch
        height, width = (side // patch for side in images.shape[-2:])
        if height * width == grid**2 and images.shape[-2] == images.shape[-1]:
            return self.pos_embed
        table = self.pos_embed[:, count:].transpose(1, 2).unflatten(2, (grid, grid))
        scale = ((height + 0.1) / grid, (width + 0.1) / grid)
        table = F.interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :count], table.flatten(2).transpose(1, 2)], dim=1)

    def _fuse(
        self, outputs: list[Tensor], attention: list[Tensor], cross: Tensor, coarse: Tensor
    ) -> Tensor:
        """Fine CAM `[B, c, h, w]` = PAw @ (CAw * coarse); cross is `[B, heads, layers, c, P]`.

        Memory beside the maps that the blocks gave: one weighted patch-to-patch map `[B, P, P]` and
        a working copy of one layer's, `[B, heads, P, P]`.
        """
        batch, heads, layers = cross.shape[:3]
        if self.config.fusion == "uniform":
            weights = cross.new_ones(batch, heads, layers)
        else:
            weights = self.adaptive_attention_fusion(outputs, attention)
            weights = weights.unflatten(1, (heads, layers))
        weights = weights / (heads * layers)
        first = layers - (self.config.last_layers or layers)
        seeds = torch.einsum("bhl,bhlcp->bcp", weights[..., first:], cross[:, :, first:])
        seeds = seeds * coarse.flatten(2)
        count = self.config.classes
        # One weighted patch-to-patch map, summed layer by layer: no copy of all maps is made.
        affinity = sum(
            torch.einsum("bh,bhpq->bpq", weights[:, :, layer], maps[:, :, count:, count:])
            for layer, maps in enumerate(attention)
        )
        return (seeds @ affinity.transpose(1, 2)).unflatten(-1, coarse.shape[-2:])


def _convolution(channels: int, out: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

"""SAM's mask decoder for many prompts of one image, with the work they share done once.

Same masks and predicted IoU as `segment_anything`'s `MaskDecoder`, up to rounding. Three things are
done in another order:

- In the first layer all prompts see the same image tokens, so their keys and values (token to image
  attention) and queries (image to token attention) are computed once per image.
- A prompt has few tokens and the image thousands. Elsewhere the projections of image tokens are
  therefore moved to the prompt's side: q . (W x) = (W' q) . x and sum(a W x) = W sum(a x).
- Only the asked mask tokens read the image a last time and become masks. The transposed
  convolutions do not overlap (kernel = stride = 2), so they are matrix products on image tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

import bridge.runtime.torchvision_ops  # noqa: F401  (before segment_anything: see there)

# isort: split
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock


def can_share(sam: Sam) -> bool:
    """Whether `ImageDecoder` computes what the decoder of `sam` does: not for subclasses."""
    decoder = sam.mask_decoder
    parts = (decoder, decoder.transformer, sam.prompt_encoder)
    return tuple(map(type, parts)) == (MaskDecoder, TwoWayTransformer, PromptEncoder)


def numbers_at_once(device: torch.device) -> int:
    """Elements of the largest tensor of a pass: 8 MB that stay near a CPU, half a GB on a GPU."""
    return 2**21 if device.type == "cpu" else 2**27


class ImageDecoder:
    """`MaskDecoder` for prompts (without mask input) of one image.

    N = h * w image tokens of C channels; a head of an attention has D channels.
    """

    @torch.no_grad()
    def __init__(self, decoder: MaskDecoder, embedding: Tensor, position: Tensor, dense: Tensor):
        """embedding, position: `[1, C, h, w]`; dense: no-mask embedding, alike or 1 x 1."""
        self.decoder = decoder
        self.grid = embedding.shape[2:]
        self.keys = (embedding + dense).flatten(2).mT.contiguous()  # [1, N, C]
        self.position = position.flatten(2).mT.contiguous()
        first = decoder.transformer.layers[0]
        gather, scatter = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        placed = self.keys + self.position
        self.shared_keys = _heads(gather, gather.k_proj(placed))[0]  # [N, heads, D]
        self.shared_values = _heads(gather, gather.v_proj(self.keys))[0]
        self.shared_queries = _heads(scatter, scatter.q_proj(placed))[0]

    @torch.no_grad()
    def __call__(self, sparse: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mask logits `[B, M, 4h, 4w]` and predicted IoU `[B, M]` of B prompts.

        sparse: `[B, n, C]`, what the prompt encoder makes of points or boxes. tokens: M indices of
        mask tokens (0: the single mask; 1 to 3: the masks of an ambiguous prompt). Works through
        the prompts in parts whose largest tensors have `numbers_at_once`.
        """
        largest = 2 * self.keys.numel()  # the upscaled image tokens of one prompt
        step = max(1, numbers_at_once(sparse.device) // largest)
        parts = [self._decode(part, tokens) for part in sparse.split(step)]
        logits, predicted_iou = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(predicted_iou)

    def _decode(self, sparse: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        decoder = self.decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        prompt = torch.cat([own.expand(len(sparse), -1, -1), sparse], 1)
        queries, keys = prompt, self.keys
        for index, layer in enumerate(decoder.transformer.layers):
            placed = keys if index == 0 else keys + self.position
            queries = self._read(layer, index, queries, prompt=prompt, keys=keys, placed=placed)
            with_place = queries + prompt
            if index == 0:
                keys = self._shared_scatter(layer, with_place, queries)
            else:
                keys = _scatter(
                    layer.cross_attn_image_to_token,
                    keys,
                    placed,
                    queries=with_place,
                    values=queries,
                )
            keys = layer.norm4(keys)
        last = [0, *(1 + token for token in tokens)]
        queries, prompt = queries[:, last], prompt[:, last]
        final = decoder.transformer.final_attn_token_to_image
        queries = queries + _gather(final, queries + prompt, keys, placed=keys + self.position)
        queries = decoder.transformer.norm_final_attn(queries)
        predicted_iou = decoder.iou_prediction_head(queries[:, 0])[:, list(tokens)]
        filters = [
            decoder.output_hypernetworks_mlps[token](queries[:, 1 + i])
            for i, token in enumerate(tokens)
        ]
        return self._masks(keys, torch.stack(filters, 1)), predicted_iou

    def _read(
        self,
        layer: TwoWayAttentionBlock,
        index: int,
        queries: Tensor,
        prompt: Tensor,
        keys: Tensor,
        placed: Tensor,
    ) -> Tensor:
        """The first three sublayers of a block: the prompt's tokens after reading the image."""
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            with_place = queries + prompt
            queries = queries + layer.self_attn(q=with_place, k=with_place, v=queries)
        queries = layer.norm1(queries)
        if index == 0:
            read = self._shared_gather(layer, queries + prompt)
        else:
            read = _gather(layer.cross_attn_token_to_image, queries + prompt, keys, placed=placed)
        queries = layer.norm2(queries + read)
        return layer.norm3(queries + layer.mlp(queries))

    def _shared_gather(self, layer: TwoWayAttentionBlock, queries: Tensor) -> Tensor:
        """Token to image attention over the image tokens that all prompts share: `[B, T, C]`."""
        attention = layer.cross_attn_token_to_image
        q = _heads(attention, attention.q_proj(queries))
        logits = torch.einsum("bthd,nhd->bhtn", q, self.shared_keys) * q.shape[-1] ** -0.5
        read = torch.einsum("bhtn,nhd->bthd", logits.softmax(-1), self.shared_values)
        return attention.out_proj(read.flatten(2))

    def _shared_scatter(
        self, layer: TwoWayAttentionBlock, queries: Tensor, values: Tensor
    ) -> Tensor:
        """Shared image tokens plus what they read from each prompt's tokens: `[B, N, C]`."""
        attention = layer.cross_attn_image_to_token
        k = _heads(attention, attention.k_proj(queries)) * self.shared_queries.shape[-1] ** -0.5
        logits = torch.einsum("bthd,nhd->bhtn", k, self.shared_queries)
        return _add_values(attention, self.keys, logits, values=values)

    def _masks(self, keys: Tensor, filters: Tensor) -> Tensor:
        """Logits `[B, M, 4h, 4w]` of image tokens `[B, N, C]` and filters `[B, M, C / 8]`."""
        # Three large tensors live at once here, so that parts of the image stay near a CPU.
        step = max(1, numbers_at_once(keys.device) // (8 * len(keys) * keys.shape[2]))
        logits = torch.cat([self._upscale(part, filters) for part in keys.split(step, 1)], 2)
        h, w = self.grid
        logits = logits.unflatten(2, (h, w, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return logits.reshape(*logits.shape[:2], 4 * h, 4 * w)

    def _upscale(self, keys: Tensor, filters: Tensor) -> Tensor:
        """Logits `[B, M, 16 n]` of the 4 x 4 pixels of n image tokens `[B, n, C]`."""
        first, norm, act, second, act2 = self.decoder.output_upscaling
        x = _deconvolve(first, keys)  # [B, n, 4, C / 4]
        x = act(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        x = act2(_deconvolve(second, x))  # [B, n, 4, 4, C / 8]
        return filters @ x.flatten(1, 3).mT


def _heads(attention: Attention, x: Tensor) -> Tensor:
    """`[B, n, heads * D]` -> `[B, n, heads, D]`."""
    return x.unflatten(-1, (attention.num_heads, -1))


def _gather(attention: Attention, queries: Tensor, keys: Tensor, placed: Tensor) -> Tensor:
    """Token to image attention, image tokens `[B, N, C]` unprojected: `[B, T, C]`.

    The bias of the keys is the same for all image tokens: it leaves the softmax as it is.
    """
    heads = attention.num_heads
    w_k, w_v = (p.weight.unflatten(0, (heads, -1)) for p in (attention.k_proj, attention.v_proj))
    q = _heads(attention, attention.q_proj(queries)) * w_k.shape[1] ** -0.5
    q = torch.einsum("bthd,hdc->bthc", q, w_k).flatten(1, 2)
    read = (q @ placed.mT).softmax(-1) @ keys  # [B, T * heads, C]
    read = torch.einsum("bthc,hdc->bthd", read.unflatten(1, (-1, heads)), w_v).flatten(2)
    return attention.out_proj(read + attention.v_proj.bias)


def _scatter(
    attention: Attention, keys: Tensor, placed: Tensor, queries: Tensor, values: Tensor
) -> Tensor:
    """Image tokens `[B, N, C]` plus what they read from the prompt's tokens `[B, T, C]`."""
    w_q = attention.q_proj.weight.unflatten(0, (attention.num_heads, -1))
    k = _heads(attention, attention.k_proj(queries)) * w_q.shape[1] ** -0.5
    bias = torch.einsum("bthd,hd->bht", k, _heads(attention, attention.q_proj.bias))
    k = torch.einsum("bthd,hdc->bhtc", k, w_q).flatten(1, 2)
    logits = torch.baddbmm(bias.flatten(1)[..., None], k, placed.mT)  # [B, heads * T, N]
    return _add_values(attention, keys, logits.unflatten(1, bias.shape[1:]), values=values)


def _add_values(attention: Attention, keys: Tensor, logits: Tensor, values: Tensor) -> Tensor:
    """keys `[B or 1, N, C]` + out_proj(softmax_T(logits `[B, heads, T, N]`)' v_proj(values))."""
    heads = attention.num_heads
    w_out = attention.out_proj.weight.unflatten(1, (heads, -1))  # [C, heads, D]
    v = torch.einsum("bthd,chd->bhtc", _heads(attention, attention.v_proj(values)), w_out)
    v = v + attention.out_proj.bias / heads  # the weights of each head sum to one
    weights = logits.softmax(2).flatten(1, 2)
    return torch.baddbmm(keys, weights.mT, v.flatten(1, 2))


def _deconvolve(layer: torch.nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution of kernel and stride 2 on `[..., C]`: `[..., 4, C']`."""
    weight = layer.weight.flatten(2).permute(2, 1, 0)  # [4, C', C]
    return F.linear(x, weight.flatten(0, 1), layer.bias.repeat(4)).unflatten(-1, (4, -1))

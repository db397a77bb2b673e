"""DINO (Zhang et al. 2023): DETR with deformable attention, two stages and denoising, at any size.

With a `ResNet50` and the sizes of `recipes.r50` it is mmdetection's DINO-4scale, parameter by
parameter. What is float32 whatever `precision` says: positions, boxes, softmax, the statistics of
norms and the tokens that layers add to.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from weaksam_jax.detectors.dino.config import ModelConfig
from weaksam_jax.detectors.dino.decoder import Decoder, Memory, Queries
from weaksam_jax.detectors.dino.denoising import Slots, visible_queries
from weaksam_jax.detectors.dino.encoder import DeformableEncoder, PyramidEncoder
from weaksam_jax.detectors.dino.layers import LINEAR, XAVIER, Mlp, layer_norm
from weaksam_jax.detectors.dino.neck import ChannelMapper
from weaksam_jax.detectors.dino.outputs import Detected, TrainingOutputs
from weaksam_jax.detectors.dino.positions import (
    Shapes,
    grid_proposals,
    image_extent,
    inverse_sigmoid,
)
from weaksam_jax.engine.precision import layer_dtype

ZEROS = nn.initializers.zeros
PRIOR = -float(np.log(99.0))  # bias of the class logits at the start: a score of 1 %


class Proposals(NamedTuple):
    """What the first stage says of the Q tokens it chose, best first: tokens int32 `[B, Q]`, logits
    `[B, Q, C]`, boxes `[B, Q, 4]` (centre, sides) in shares of the image."""

    tokens: jax.Array
    logits: jax.Array
    boxes: jax.Array


class DinoNetwork(nn.Module):
    """backbone: images `[B, H, W, 3]` -> maps at its strides, of which the last ones are used.

    Images are normalised, float32, 0 in the padding; size: `[B, 2]`, (height, width) of each within
    the padded size.
    """

    backbone: nn.Module
    classes: int
    config: ModelConfig = ModelConfig()

    def setup(self):
        config, dtype = self.config, layer_dtype(self.config.precision)
        channels, heads = config.channels, config.decoder_layers + 1
        attention = {"heads": config.heads, "points": config.points, "ffn_width": config.ffn_width}
        common = {**attention, "dtype": dtype, "remat": config.remat != "none"}
        self.neck = ChannelMapper(
            channels,
            config.extra_levels,
            config.neck_groups,
            bias=config.neck_bias,
            dtype=dtype,
        )
        if config.encoder == "deformable":
            place = {"temperature": config.position_temperature, "offset": config.position_offset}
            self.encoder = DeformableEncoder(config.encoder_layers, **place, **common)
        else:
            self.encoder = PyramidEncoder(dtype)
        self.memory_fc = nn.Dense(channels, dtype=dtype, kernel_init=XAVIER)
        self.memory_norm = layer_norm(None)
        prior = nn.initializers.constant(PRIOR)
        self.class_heads = [
            nn.Dense(self.classes, kernel_init=LINEAR, bias_init=prior) for _ in range(heads)
        ]
        widths = (channels, channels, 4)
        self.box_heads = [Mlp(widths, last_init=ZEROS, dtype=dtype) for _ in range(heads)]
        self.query_embed = self.param("query_embed", XAVIER, (config.queries, channels))
        normal = nn.initializers.normal(1.0)
        self.label_embed = self.param("label_embed", normal, (self.classes, channels))
        self.decoder = Decoder(config.decoder_layers, **common)

    def __call__(self, images: jax.Array, size: jax.Array) -> Detected:
        """What is detected; without denoising."""
        return self.detect_levels(self.levels(images), size, images.shape[1:3])

    def training(self, images: jax.Array, size: jax.Array, slots: Slots) -> TrainingOutputs:
        """What the losses are made of."""
        return self.train_levels(self.levels(images), size, images.shape[1:3], slots=slots)

    def detect_levels(
        self, levels: Sequence[jax.Array], size: jax.Array, padded: tuple[int, int]
    ) -> Detected:
        """`__call__` behind the neck; padded: (height, width) of the images with padding."""
        memory = self.encode(levels, size, padded)
        proposals = self.propose(memory, levels)
        logits, boxes = self.decode(self.matching_queries(proposals), memory, levels)
        return Detected(logits, boxes, proposals.logits, encoder_boxes=proposals.boxes)

    def train_levels(
        self,
        levels: Sequence[jax.Array],
        size: jax.Array,
        padded: tuple[int, int],
        *,
        slots: Slots,
    ) -> TrainingOutputs:
        """`training` behind the neck."""
        memory = self.encode(levels, size, padded)
        proposals = self.propose(memory, levels)
        queries = self.with_slots(self.matching_queries(proposals), slots)
        logits, boxes = self.decode(queries, memory, levels)
        count = slots.labels.shape[1]
        return TrainingOutputs(
            logits[:, :, count:],
            boxes[:, :, count:],
            proposals.logits,
            encoder_boxes=proposals.boxes,
            denoising_logits=logits[:, :, :count],
            denoising_boxes=boxes[:, :, :count],
            denoising_targets=slots.targets,
        )

    def levels(self, images: jax.Array) -> list[jax.Array]:
        """Levels `[B, H_l, W_l, C]` of normalised images `[B, H, W, 3]`."""
        run = nn.remat(_call) if self.config.remat == "all" else _call
        used = len(self.config.strides) - self.config.extra_levels
        return self.neck(run(self.backbone, images)[-used:])

    def encode(
        self, levels: Sequence[jax.Array], size: jax.Array, padded: tuple[int, int]
    ) -> Memory:
        """The memory of levels of images padded to (height, width) `padded`."""
        extent = image_extent(size, padded, shapes_of(levels))
        return Memory(self.encoder(levels, extent), extent)

    def propose(self, memory: Memory, levels: Sequence[jax.Array]) -> Proposals:
        """The Q tokens of highest class logit (all of fewer). Those whose cell can be no box come
        last, as the box (1, 1, 1, 1); in the official code they compete with one logit common to
        all of them."""
        grid, usable = grid_proposals(memory.extent, shapes_of(levels))
        tokens = self.memory_fc(jnp.where(usable[..., None], memory.tokens, 0.0))
        tokens = self.memory_norm(tokens.astype(jnp.float32))
        logits = self.class_heads[-1](tokens)
        best = jnp.where(usable, jnp.max(logits, -1), -jnp.inf)
        index = jax.lax.top_k(best, min(self.config.queries, best.shape[1]))[1]

        def chosen(x):
            return jnp.take_along_axis(x, index[..., None], axis=1)

        boxes = self.box_heads[-1](chosen(tokens)) + chosen(grid)
        return Proposals(index, chosen(logits), jax.nn.sigmoid(boxes))

    def matching_queries(self, proposals: Proposals) -> Queries:
        """Mixed query selection (DINO §3.4): places of the proposals, without gradient, and learned
        contents by rank."""
        batch, count = proposals.tokens.shape
        content = self.query_embed[None, :count]
        content = jnp.broadcast_to(content, (batch, *content.shape[1:]))
        return Queries(content, jax.lax.stop_gradient(proposals.boxes))

    def with_slots(self, queries: Queries, slots: Slots) -> Queries:
        """Denoising queries before the matching ones."""
        if not slots.labels.shape[1]:
            return queries
        content = jnp.where(slots.filled[..., None], self.label_embed[slots.labels], 0.0)
        return Queries(
            jnp.concatenate([content, queries.content], 1),
            jnp.concatenate([slots.boxes, queries.boxes], 1),
            visible_queries(slots, queries.content.shape[1]),
        )

    def decode(
        self, queries: Queries, memory: Memory, levels: Sequence[jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Class logits `[layers, B, Q, C]` and boxes `[layers, B, Q, 4]` of queries."""
        *refine, _ = self.box_heads
        hidden, starts = self.decoder(queries, memory, shapes_of(levels), refine=refine)
        starts = inverse_sigmoid(starts, self.config.prediction_epsilon)
        boxes = [head(x) + start for head, x, start in zip(refine, hidden, starts, strict=True)]
        logits = [head(x) for head, x in zip(self.class_heads[:-1], hidden, strict=True)]
        return jnp.stack(logits), jax.nn.sigmoid(jnp.stack(boxes))


def _call(module: nn.Module, images: jax.Array) -> tuple[jax.Array, ...]:
    return module(images)


def shapes_of(levels: Sequence[jax.Array]) -> Shapes:
    """(height, width) of maps `[B, H, W, C]`."""
    return tuple(one.shape[1:3] for one in levels)

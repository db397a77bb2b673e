"""What the DINO network gives; L decoder layers, B images, Q queries, S denoising slots, C classes.

Logits are of the sigmoid, one per class, no background. Boxes are (centre x, centre y, width,
height) as shares of the image without its padding, in 0..1. All floats are float32.
"""

from typing import NamedTuple

import jax


class Detected(NamedTuple):
    """Of the matching queries: logits `[L, B, Q, C]` and boxes `[L, B, Q, 4]` of every decoder
    layer, the last one last; encoder_logits `[B, Q, C]` and encoder_boxes `[B, Q, 4]` of the tokens
    that the first stage chose, best first (token k of them became query k)."""

    logits: jax.Array
    boxes: jax.Array
    encoder_logits: jax.Array
    encoder_boxes: jax.Array


class DenoisingTargets(NamedTuple):
    """What the denoising slots stand for, `[B, S]` each.

    index: int32, the object (a row of the batch's boxes and labels) that the slot was made from, 0
    where there is none. positive: bool, the slot shall find that object; valid & ~positive: it
    shall say background. valid: bool, the slot takes part in the loss; all others are padding that
    no query attends to.
    """

    index: jax.Array
    positive: jax.Array
    valid: jax.Array


class TrainingOutputs(NamedTuple):
    """The fields of `Detected`, and denoising_logits `[L, B, S, C]`, denoising_boxes `[L, B, S, 4]`
    with what they are compared to. S is 0 without denoising."""

    logits: jax.Array
    boxes: jax.Array
    encoder_logits: jax.Array
    encoder_boxes: jax.Array
    denoising_logits: jax.Array
    denoising_boxes: jax.Array
    denoising_targets: DenoisingTargets

"""DINO's losses with a given assignment, written out for the gradients of the golden numbers."""

import jax.numpy as jnp
import numpy as np


def all_terms(outputs, batch, matched):
    """mmdetection's 15 terms by their names, weighted. outputs: `TrainingOutputs` of 2 layers;
    matched: `[layers + 1, B, Q]`, 0 or 1 + the object of each query, the encoder's last."""
    count = max(int(batch["valid"].sum()), 1)
    targets = outputs.denoising_targets
    noisy = np.where(targets.positive, np.asarray(targets.index) + 1, 0)
    noisy_count = max(int(np.sum(targets.positive)), 1)
    layers = len(outputs.logits)
    terms = {}
    for i in range(layers):
        name = "" if i == layers - 1 else f"d{i}."
        own = outputs.logits[i], outputs.boxes[i]
        terms |= _terms(f"{name}loss_", *own, matched[i], batch, count)
        own = outputs.denoising_logits[i], outputs.denoising_boxes[i]
        if noisy.any():
            seen = np.asarray(targets.valid)
            terms |= _terms(f"{name}dn_loss_", *own, noisy, batch, noisy_count, seen)
    own = outputs.encoder_logits, outputs.encoder_boxes
    return terms | _terms("enc_loss_", *own, matched[-1], batch, count)


def _terms(name, logits, boxes, matched, batch, count, seen=None):
    """matched `[B, Q]`: 0 or 1 + the object; seen `[B, Q]`: which queries count at all."""
    rows, index = np.arange(len(matched))[:, None], np.maximum(matched - 1, 0)
    found, labels = matched > 0, batch["labels"][rows, index]
    target = (np.arange(logits.shape[-1]) == labels[..., None]) & found[..., None]
    chance = 1 / (1 + jnp.exp(-logits))
    right = jnp.where(target, chance, 1 - chance)
    focal = -jnp.log(right) * (1 - right) ** 2 * np.where(target, 0.25, 0.75)
    focal = focal if seen is None else jnp.where(seen[..., None], focal, 0)
    height, width = batch["size"].T.astype(np.float32)[..., None, None]
    sides = np.concatenate([width, height, width, height], -1)
    truth = batch["boxes"][rows, index]
    low, high = truth[..., :2], truth[..., 2:]
    shares = np.concatenate([(low + high) / 2, high - low], -1) / sides
    apart = jnp.sum(jnp.abs(boxes - shares), -1)
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    predicted = jnp.concatenate([centre - half, centre + half], -1) * sides
    return {
        f"{name}cls": jnp.sum(focal) / count,
        f"{name}bbox": 5 * jnp.sum(jnp.where(found, apart, 0)) / count,
        f"{name}iou": 2 * jnp.sum(jnp.where(found, 1 - _giou(predicted, truth), 0)) / count,
    }


def _giou(one, other):
    def area(low, high):
        sides = jnp.maximum(high - low, 0)
        return sides[..., 0] * sides[..., 1]

    pairs = one[..., :2], one[..., 2:], other[..., :2], other[..., 2:]
    both = area(jnp.maximum(pairs[0], pairs[2]), jnp.minimum(pairs[1], pairs[3]))
    union = area(*pairs[:2]) + area(*pairs[2:]) - both
    hull = area(jnp.minimum(pairs[0], pairs[2]), jnp.maximum(pairs[1], pairs[3]))
    return both / union - (hull - union) / hull

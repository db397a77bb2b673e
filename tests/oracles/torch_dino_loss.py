"""DINO's losses with query drop in plain PyTorch, one layer and image at a time, float64; scipy
matches. For values and, by autograd, gradients."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment


def terms_of(outputs, batch, drop=None):
    """mmdetection's terms by name, weighted. outputs: tensors `logits` [L, B, Q, C], `boxes`,
    `encoder_logits` [B, Q, C], `encoder_boxes`, `denoising_logits` [L, B, S, C],
    `denoising_boxes`; arrays `index`, `positive`, `valid` [B, S]. drop: percentile, background,
    encoder, denoising; None: nothing is dropped."""
    drop = drop or {}
    layers, objects = len(outputs["logits"]), max(int(batch["valid"].sum()), 1)
    noisy = [np.where(p, i, -1) for i, p in zip(outputs["index"], outputs["positive"], strict=True)]
    seen = torch.from_numpy(np.asarray(outputs["valid"]))
    noised = max(int((outputs["positive"] & outputs["valid"]).sum()), 1)
    terms = {}
    for layer in range(layers):
        name = "" if layer == layers - 1 else f"d{layer}."
        own = outputs["logits"][layer], outputs["boxes"][layer]
        terms |= _matched(f"{name}loss_", *own, batch, objects, drop or None)
        own = outputs["denoising_logits"][layer], outputs["denoising_boxes"][layer]
        of_noise = drop if drop.get("denoising") else None
        terms |= _set_terms(f"{name}dn_loss_", *own, noisy, seen, batch, noised, of_noise)
    own = outputs["encoder_logits"], outputs["encoder_boxes"]
    of_encoder = drop if drop.get("encoder") else None
    return terms | _matched("enc_loss_", *own, batch, objects, of_encoder)


def _matched(name, logits, boxes, batch, count, drop):
    index = [match(logits[i], boxes[i], batch, i) for i in range(len(logits))]
    seen = torch.ones(logits.shape[:2], dtype=bool)
    return _set_terms(name, logits, boxes, index, seen, batch, count, drop)


def match(logits, boxes, batch, image):
    """The object of each query of an image, -1 where none."""
    chosen = np.flatnonzero(batch["valid"][image])
    p = logits.detach().sigmoid()[:, batch["labels"][image][chosen]]
    found = 0.25 * (1 - p) ** 2 * -(p + 1e-12).log()
    cost = 2 * (found - 0.75 * p**2 * -(1 - p + 1e-12).log())
    shares, pixels, scale = _objects(batch, image, chosen)
    cost = cost + 5 * torch.cdist(boxes.detach().double(), shares, p=1)
    overlap = giou(_corners(boxes.detach())[:, None] * scale, pixels[None])
    index = np.full(len(boxes), -1)
    rows, columns = linear_sum_assignment((cost - 2 * overlap).numpy())
    index[rows] = chosen[columns]
    return index


def _objects(batch, image, chosen):
    """(boxes as shares (centre, sides), corners in pixels, (w, h, w, h)) of some objects."""
    height, width = batch["size"][image]
    scale = torch.tensor([width, height, width, height], dtype=torch.float64)
    pixels = torch.from_numpy(batch["boxes"][image][chosen]).double().reshape(-1, 4)
    low, high = pixels[:, :2], pixels[:, 2:]
    return torch.cat([(low + high) / 2, high - low], 1) / scale, pixels, scale


def _corners(boxes):
    centre, half = boxes.double()[..., :2], boxes.double()[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def giou(a, b, eps=1e-6):
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0)
    both = sides.prod(-1)
    own = [(one[..., 2:] - one[..., :2]).prod(-1) for one in (a, b)]
    union = (own[0] + own[1] - both).clamp(eps)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = hull.clamp(0).prod(-1).clamp(eps)
    return both / union - (hull - union) / hull


def _set_terms(name, logits, boxes, index, seen, batch, count, drop):
    """index: of each image, the object of each query or -1; seen `[B, Q]`."""
    logits = logits.double()
    label = torch.zeros_like(logits)
    for image, own in enumerate(index):
        queries = np.flatnonzero(own >= 0)
        label[image, queries, batch["labels"][image][own[queries]]] = 1
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    p = logits.sigmoid()
    against = torch.where(label > 0, 1 - p, p)
    focal = torch.where(label > 0, 0.25, 0.75) * against**2 * entropy
    matched = np.stack(index) >= 0 if len(index) else np.zeros((0, 0), bool)
    keep = torch.from_numpy(keep_of(entropy.detach().sum(-1).numpy(), matched, seen.numpy(), drop))
    l1 = iou = boxes.sum() * 0
    for image, own in enumerate(index):
        queries = np.flatnonzero((own >= 0) & seen[image].numpy() & keep[image].numpy())
        shares, pixels, scale = _objects(batch, image, own[queries])
        found = boxes[image, queries].double()
        l1 = l1 + (found - shares).abs().sum()
        iou = iou + (1 - giou(_corners(found) * scale, pixels)).sum()
    cls = (focal.sum(-1) * (seen & keep)).sum()
    parts = {"cls": cls / count, "bbox": 5 * l1 / count, "iou": 2 * iou / count}
    return {name + part: value for part, value in parts.items()}


def keep_of(loss, matched, seen, drop):
    """Equation 3 for one layer, `[B, Q]`."""
    keep, things = np.ones(loss.shape, bool), matched & seen
    ranked, ranks = (seen if drop and drop["background"] else things), loss.copy()
    if drop is None or not ranked.any():
        return keep
    if drop["background"]:
        for group in (things, seen & ~things):
            low, high = loss[group].min(initial=np.inf), loss[group].max(initial=-np.inf)
            ranks[group] = (loss[group] - low) / (high - low) if high > low else 0
    limit = np.percentile(ranks[ranked], drop["percentile"], method="inverted_cdf")
    return ~ranked | (ranks <= limit)

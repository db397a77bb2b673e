"""Boxes: the format, the pixel convention and their algebra, stated once for the whole project.

**Format.** `[x1, y1, x2, y2]` in pixels, float32, last axis 4.

**Pixel convention.** Continuous coordinates: pixel (column i, row j) covers the square
`[i, i+1] x [j, j+1]`, so width = x2 - x1 with no "+1", a mask whose first and last columns are a
and b has the box x1 = a, x2 = b + 1, and the whole image is `[0, 0, W, H]`. VOC's 1-based inclusive
`xmin, ymin, xmax, ymax` is `[xmin-1, ymin-1, xmax, ymax]` here; COCO's `[x, y, w, h]` is
`[x, y, x+w, y+h]`.

**Images** are uint8 RGB `[H, W, 3]`, upright (EXIF orientation applied once, in
`weaksam_jax.data.images`).

Every function takes NumPy or JAX arrays (it uses the array's own namespace), so both sides share
one implementation and this module imports neither jax nor torch.
"""

import math

# Deltas are clamped so that exp() cannot grow a box more than 1000/16 times (Faster R-CNN).
MAX_LOG_SCALE = math.log(1000.0 / 16)
# Weights of (dx, dy, dw, dh) for box heads; the RPN uses (1, 1, 1, 1).
HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def area(boxes):
    """Areas `[...]` of boxes `[..., 4]`; inverted boxes have area 0."""
    xp = boxes.__array_namespace__()
    return xp.prod(
        xp.maximum(boxes[..., 2:] - boxes[..., :2], xp.zeros_like(boxes[..., :2])), axis=-1
    )


def intersection(a, b):
    """Intersection areas `[..., N, M]` of boxes a `[..., N, 4]` and b `[..., M, 4]`."""
    xp = a.__array_namespace__()
    low = xp.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = xp.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    side = xp.maximum(high - low, xp.zeros_like(high))
    return side[..., 0] * side[..., 1]


def iou(a, b):
    """Intersection over union `[..., N, M]`; 0 where both boxes are empty."""
    xp = a.__array_namespace__()
    both = intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - both
    return xp.where(
        union > 0, both / xp.where(union > 0, union, xp.ones_like(union)), xp.zeros_like(union)
    )


def containment(a, b):
    """|a ∩ b| / |a|, `[..., N, M]` (Algorithm 2 of the paper); 0 where a is empty."""
    xp = a.__array_namespace__()
    own = area(a)[..., :, None]
    both = intersection(a, b)
    return xp.where(own > 0, both / xp.where(own > 0, own, xp.ones_like(own)), xp.zeros_like(both))


def clip(boxes, width, height):
    """Boxes `[..., 4]` cut to the image `[0, 0, width, height]`."""
    xp = boxes.__array_namespace__()
    x = xp.clip(boxes[..., 0::2], 0, width)
    y = xp.clip(boxes[..., 1::2], 0, height)
    return xp.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)


def flip(boxes, width):
    """Boxes `[..., 4]` flipped left-right in an image of that width."""
    xp = boxes.__array_namespace__()
    return xp.stack(
        [width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], axis=-1
    )


def encode(target, reference, weights=HEAD_WEIGHTS):
    """Deltas `[..., 4]` (dx, dy, dw, dh) that move `reference` onto `target` (R-CNN, appendix C).

    Sides are clamped below at 1e-3 pixel so that padding (zero boxes) stays finite.
    """
    xp = target.__array_namespace__()
    tiny = 1e-3
    reference_size = xp.maximum(
        reference[..., 2:] - reference[..., :2], xp.full_like(reference[..., :2], tiny)
    )
    target_size = xp.maximum(target[..., 2:] - target[..., :2], xp.full_like(target[..., :2], tiny))
    shift = (target[..., 2:] + target[..., :2] - reference[..., 2:] - reference[..., :2]) / 2
    scale = xp.asarray(weights, dtype=target.dtype)
    return (
        xp.concat([shift / reference_size, xp.log(target_size / reference_size)], axis=-1) * scale
    )


def decode(deltas, reference, weights=HEAD_WEIGHTS):
    """Boxes `[..., 4]` from deltas `[..., 4]` and reference boxes: the inverse of `encode`."""
    xp = deltas.__array_namespace__()
    deltas = deltas / xp.asarray(weights, dtype=deltas.dtype)
    size = reference[..., 2:] - reference[..., :2]
    center = (reference[..., 2:] + reference[..., :2]) / 2 + deltas[..., :2] * size
    half = xp.exp(xp.clip(deltas[..., 2:], None, MAX_LOG_SCALE)) * size / 2
    return xp.concat([center - half, center + half], axis=-1)


def to_xywh(boxes):
    """COCO's `[x, y, width, height]` from `[x1, y1, x2, y2]`."""
    xp = boxes.__array_namespace__()
    return xp.concat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def from_xywh(boxes):
    """`[x1, y1, x2, y2]` from COCO's `[x, y, width, height]`."""
    xp = boxes.__array_namespace__()
    return xp.concat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def to_cxcywh(boxes):
    """(centre x, centre y, width, height) `[..., 4]` from `[x1, y1, x2, y2]`."""
    xp = boxes.__array_namespace__()
    low, high = boxes[..., :2], boxes[..., 2:]
    return xp.concat([(low + high) / 2, high - low], axis=-1)


def from_cxcywh(boxes):
    """`[x1, y1, x2, y2]` from (centre x, centre y, width, height), `[..., 4]`."""
    xp = boxes.__array_namespace__()
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return xp.concat([centre - half, centre + half], axis=-1)


def paired_giou(a, b, least=1e-6):
    """Generalised IoU `[...]` of boxes `[..., 4]` with those of the same place (Rezatofighi et al.
    2019, algorithm 1), from -1 to 1.

    The shapes may broadcast: `a[..., :, None, :]` and `b[..., None, :, :]` give all pairs. least:
    areas of unions and hulls count at least this much (mmdetection: 1e-6 square pixels).
    """
    xp = a.__array_namespace__()
    width, height = _sides(
        xp.maximum(a[..., :2], b[..., :2]), high=xp.minimum(a[..., 2:], b[..., 2:])
    )
    both = width * height
    own = [w * h for w, h in (_sides(one[..., :2], high=one[..., 2:]) for one in (a, b))]
    union = own[0] + own[1] - both
    union = xp.maximum(union, xp.full_like(union, least))
    width, height = _sides(
        xp.minimum(a[..., :2], b[..., :2]), high=xp.maximum(a[..., 2:], b[..., 2:])
    )
    hull = xp.maximum(width * height, xp.full_like(union, least))
    return both / union - (hull - union) / hull


def _sides(low, high):
    """Width and height `[...]` from corner to corner, 0 where they are crossed."""
    xp = low.__array_namespace__()
    side = xp.maximum(high - low, xp.zeros_like(low))
    return side[..., 0], side[..., 1]

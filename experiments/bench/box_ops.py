"""Entries of `experiments.bench`: what selects boxes, beside PyTorch at the same sizes.

PyTorch's NMS is torchvision's operator where it is compiled, else the greedy loop of
`bridge.runtime.torchvision_ops`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.bench.entry import Entry, random_boxes

# A 4:3 photo of 800 pixels: the pyramid of R50-FPN.
CANVAS, STRIDES, SIZES = (832, 1088), (4, 8, 16, 32, 64), (32, 64, 128, 256, 512)
PRE_NMS, POST_NMS, RPN_IOU = 2000, 1000, 0.7
CLASSES, DETECTIONS, SCORE, IOU = 20, 100, 0.05, 0.5


def nms(count: int) -> Entry:
    """Class-wise NMS of the boxes of an image, each class with its own, and the best 100."""
    from weaksam_jax.ops.nms import multiclass_nms

    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, count, 640, height=480)[:, None] + rng.uniform(
        -8, 8, (count, CLASSES, 4)
    )
    boxes, scores = boxes.astype(np.float32), rng.random((count, CLASSES), dtype=np.float32) ** 4
    select = jax.jit(
        lambda *args: multiclass_nms(
            *args, score_threshold=SCORE, iou_threshold=IOU, max_output=DETECTIONS
        )
    )
    inputs = tuple(map(jnp.asarray, (boxes, scores, np.ones(count, bool))))
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores)

    def same(ours, other) -> str:
        equal = np.isclose(np.asarray(ours[1]), other, atol=1e-6).sum()
        return f"{equal} of {DETECTIONS} scores equal"

    work = f"class-wise NMS, {count} boxes of {CLASSES} classes, {DETECTIONS} detections"
    ours = lambda: jax.block_until_ready(select(*inputs))  # noqa: E731
    theirs = lambda: _best_by_torch(*tensors)  # noqa: E731
    return Entry(work, ours, "torchvision nms, class by class", other=theirs, agree=same)


def _best_by_torch(boxes: torch.Tensor, scores: torch.Tensor) -> np.ndarray:
    """The scores of the best detections."""
    import bridge.runtime.torchvision_ops  # noqa: F401

    # isort: split
    from torchvision.ops import nms as torch_nms

    kept = []
    for c in range(CLASSES):
        own = (scores[:, c] > SCORE).nonzero()[:, 0]
        own = own[torch_nms(boxes[own, c], scores[own, c], IOU)]
        kept.append(scores[own, c])
    return torch.cat(kept).topk(DETECTIONS).values.numpy()


def _rpn_outputs(rng: np.random.Generator) -> tuple[list, list, list]:
    """Logits `[N_l]`, deltas and anchors `[N_l, 4]` of every level."""
    from weaksam_jax.ops.anchors import pyramid_anchors

    shapes = [tuple(side // stride for side in CANVAS) for stride in STRIDES]
    anchors = pyramid_anchors(shapes, STRIDES, [(size,) for size in SIZES], ratios=(0.5, 1.0, 2.0))
    anchors = [np.asarray(one) for one in anchors]
    logits = [rng.standard_normal(len(one), dtype=np.float32) for one in anchors]
    deltas = [0.2 * rng.standard_normal(one.shape, dtype=np.float32) for one in anchors]
    return logits, deltas, anchors


def rpn_proposals() -> Entry:
    """The proposals of an image from what the RPN says of all anchors."""
    from weaksam_jax.ops.proposals import select_proposals

    logits, deltas, anchors = _rpn_outputs(np.random.default_rng(0))
    limits = {"pre_nms": PRE_NMS, "post_nms": POST_NMS, "iou_threshold": RPN_IOU}
    select = jax.jit(
        lambda *args: select_proposals(*args, image_size=jnp.float32(CANVAS), **limits)
    )
    inputs = jax.tree.map(jnp.asarray, (logits, deltas, anchors))
    tensors = jax.tree.map(torch.from_numpy, (logits, deltas, anchors))

    def same(ours, other) -> str:
        equal = np.isclose(np.asarray(ours[1]), other, atol=1e-6).sum()
        return f"{equal} of {POST_NMS} logits equal"

    work = f"RPN proposals, {sum(map(len, logits))} anchors of {CANVAS[0]}x{CANVAS[1]}"
    ours = lambda: jax.block_until_ready(select(*inputs))  # noqa: E731
    theirs = lambda: _proposals_by_torch(*tensors)  # noqa: E731
    return Entry(work, ours, "torch, level by level", other=theirs, agree=same)


def _proposals_by_torch(logits, deltas, anchors) -> np.ndarray:
    """The logits of the best proposals."""
    import bridge.runtime.torchvision_ops  # noqa: F401

    # isort: split
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.ops import clip_boxes_to_image
    from torchvision.ops import nms as torch_nms

    coder, kept = BoxCoder((1.0, 1.0, 1.0, 1.0)), []
    for level in zip(logits, deltas, anchors, strict=True):
        scores, order = level[0].topk(min(PRE_NMS, len(level[0])))
        boxes = coder.decode_single(level[1][order], level[2][order])
        boxes = clip_boxes_to_image(boxes, CANVAS)
        full = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores = boxes[full], scores[full]
        kept.append(scores[torch_nms(boxes, scores, RPN_IOU)[:POST_NMS]])
    return torch.cat(kept).topk(POST_NMS).values.numpy()

"""Make ``import torchvision`` and ``import segment_anything`` work on CPU-only torch.

A torchvision wheel built for another torch build cannot load its compiled operators, and its
Python side then fails at import because ``torchvision::nms`` has no schema to attach to.
Importing this module first defines the two missing operators (only if they are missing) and
gives ``nms`` a CPU implementation. It changes nothing where torchvision is complete.
"""

from __future__ import annotations

import numpy as np
import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression, torchvision's definition (no +1 in widths).

    dets: float [n, 4] as x0, y0, x1, y1; scores: float [n]. Returns int64 indices of the kept
    boxes by falling score; a box goes when its IoU with a kept one is above `iou_threshold`.
    """
    boxes = dets.detach().cpu().double().numpy()
    order = torch.sort(scores.detach().cpu(), descending=True, stable=True).indices.numpy()
    x0, y0, x1, y1 = boxes[order].T
    area = (x1 - x0) * (y1 - y0)
    alive = np.ones(len(order), bool)
    keep = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        keep.append(order[i])
        rest = i + 1 + np.flatnonzero(alive[i + 1 :])
        w = np.minimum(x1[i], x1[rest]) - np.maximum(x0[i], x0[rest])
        h = np.minimum(y1[i], y1[rest]) - np.maximum(y0[i], y0[rest])
        inter = np.clip(w, 0, None) * np.clip(h, 0, None)
        union = area[i] + area[rest] - inter
        alive[rest[inter > iou_threshold * union]] = False
    return torch.as_tensor(np.asarray(keep, np.int64), device=dets.device)


def _has_operator(name: str) -> bool:
    return bool(torch._C._jit_get_schemas_for_operator(f"torchvision::{name}"))


def _define_missing() -> torch.library.Library | None:
    """Load torchvision's own operators if they load; define those still missing.

    The returned library must stay referenced: its destructor removes the operators again.
    """
    if _has_operator("nms") and _has_operator("qnms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        if not _has_operator(name):
            library.define(name + _SCHEMA)
            library.impl(name, nms, "CPU")
    return library


def _import_torchvision() -> torch.library.Library | None:
    """Import torchvision, plainly where that works, else over the stand-in operators."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        if _has_operator("nms"):
            return None
    library = _define_missing()
    import torchvision.ops.boxes

    if not torchvision.extension._has_ops():
        torchvision.ops.boxes._assert_has_ops = lambda: None
    return library


_LIBRARY = _import_torchvision()

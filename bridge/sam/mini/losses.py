"""SAM's training loss (Kirillov et al. 2023, appendix A) with an order among the tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """20 focal + dice of every token against every target.

    logits [P, T, h, w], targets [P, K, h, w] in {0, 1} -> [P, T, K]. Focal loss with
    gamma 2 and equal class weights, mean over pixels (Lin et al. 2017); dice with +1
    smoothing. Both are linear in the target, so all pairs are two matrix products.
    """
    x, t = logits.float().flatten(2), targets.flatten(2)
    p = torch.sigmoid(x)
    if_one = 0.5 * (1 - p).square() * F.softplus(-x)
    if_zero = 0.5 * p.square() * F.softplus(x)
    pixels = x.shape[2]
    focal = (if_one - if_zero) @ t.transpose(1, 2) + if_zero.sum(2, keepdim=True)
    overlap = p @ t.transpose(1, 2)
    dice = 1 - (2 * overlap + 1) / (p.sum(2, keepdim=True) + t.sum(2)[:, None] + 1)
    return 20 * focal / pixels + dice


def nested_loss(cost: Tensor, count: Tensor) -> Tensor:
    """Best assignment of a point's masks to the three tokens that keeps the order of size.

    cost [P, 3 tokens, 3 masks], the masks small to large, the first `count` [P] of them
    real. One mask: the best token learns it, as in SAM. Two: the best of the token pairs
    (1,2), (1,3), (2,3). Three: one each. So token 1 comes to mean the smallest reading of
    a point and token 3 the largest. Returns [P], the mean over the masks; 0 without any.
    """
    one = cost[:, :, 0].min(1).values
    pairs = [cost[:, a, 0] + cost[:, b, 1] for a, b in ((0, 1), (0, 2), (1, 2))]
    two = torch.stack(pairs).min(0).values / 2
    three = cost.diagonal(dim1=1, dim2=2).mean(1)
    return torch.stack([torch.zeros_like(one), one, two, three])[count, torch.arange(len(cost))]


def hard_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of thresholded logits [P, T, h, w] with targets [K, h, w] -> [P, T, K]."""
    found, true = (logits > 0).float().flatten(2), targets.flatten(1)
    overlap = found @ true.T
    return overlap / (found.sum(2, keepdim=True) + true.sum(1) - overlap).clamp(min=1)

"""One MIST training step of the VOC07 recipe in plain PyTorch: what the bench times beside ours.

The network is that of `experiments.bench.torch_mil` with the published names of wetectron; mining,
losses and Adam are written from docs/provenance/mil.md, sections 2 and 3, without dropout and
DropBlock. RoIPool is `adaptive_max_pool2d` on each box's window, the fastest form without
torchvision's kernel.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F

from experiments.bench.torch_mil import vgg_features

FROZEN = ("features.0.", "features.2.", "features.5.", "features.7.")  # conv1 and conv2
BRANCHES = ((1, 3.0), (2, 1.0), (3, 1.0))


def mist_loss(
    state: dict[str, torch.Tensor],
    images: torch.Tensor,
    boxes: torch.Tensor,
    *,
    tags: torch.Tensor,
    layers: AbstractContextManager | None = None,
) -> torch.Tensor:
    """Mean loss [] of images `[B, 3, H, W]` with proposals `[B, N, 4]` and tags bool `[B, C]`.

    layers: the precision of the backbone, fc6 and fc7 (`experiments.bench.torch_side.layers`).
    """
    with layers or nullcontext():
        body = "backbone.body.features."
        maps = vgg_features(state, body, images, by_place=True, rectify_last=False)
        hidden = torch.cat([pooled(one, own) for one, own in zip(maps, boxes, strict=True)])
        hidden = hidden.flatten(1)
        for name in ("feature_extractor.classifier.1", "feature_extractor.classifier.4"):
            hidden = torch.relu(linear(state, name, hidden))
    each = hidden.float().split(boxes.shape[1])
    losses = [image_loss(state, *one) for one in zip(each, boxes, tags, strict=True)]
    return torch.stack(losses).mean()


def image_loss(
    state: dict[str, torch.Tensor], hidden: torch.Tensor, boxes: torch.Tensor, tags: torch.Tensor
) -> torch.Tensor:
    """Loss [] of one image from what fc7 gives, `[N, F]`."""
    cls, det = (linear(state, f"predictor.{name}_score", hidden) for name in ("cls", "det"))
    scores = cls.softmax(1) * det.softmax(0)
    labels = F.pad(tags.float(), (1, 0))
    loss = F.binary_cross_entropy(scores.sum(0).clamp(1e-8, 1 - 1e-6), labels)
    teacher = scores[:, 1:]
    for k, factor in BRANCHES:
        label, weight, target = mine(boxes, teacher.detach(), tags)
        logits = linear(state, f"predictor.ref{k}", hidden)
        loss = loss + factor * (weight * F.cross_entropy(logits, label, reduction="none")).mean()
        deltas = linear(state, f"predictor.bbox_pred{k}", hidden).unflatten(1, (-1, 4))
        found = label > 0
        error = F.smooth_l1_loss(
            deltas[found, label[found]], encode(target[found], boxes[found]), reduction="none"
        )
        loss = loss + factor * (weight[found] * error.sum(1)).sum() / len(boxes)
        teacher = logits.softmax(1)[:, 1:]
    return loss


def pooled(maps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """RoIPool with C's rounding of features `[C, h, w]` at stride 8: `[N, C, 7, 7]`; on a GPU
    torchvision's kernel."""
    if maps.is_cuda:
        from torchvision.ops import roi_pool

        return roi_pool(maps[None].float(), [boxes], output_size=7, spatial_scale=1 / 8)
    corners = (boxes / 8 + 0.5).floor().int().tolist()
    # A box that ends at the border is rounded to one cell beyond it, which never is the maximum.
    maps = F.pad(maps, (0, 1, 0, 1), value=-torch.inf)
    windows = [maps[:, y1 : y2 + 1, x1 : x2 + 1] for x1, y1, x2, y2 in corners]
    found = torch.stack([F.adaptive_max_pool2d(window, 7) for window in windows])
    return found.masked_fill(found == -torch.inf, 0.0)


def linear(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f"roi_heads.{name}.weight"], state[f"roi_heads.{name}.bias"])


def mine(
    boxes: torch.Tensor, scores: torch.Tensor, tags: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels `[N]`, weights `[N]` and targets `[N, 4]` of MIST's rule, class by class."""
    most = 1 if len(boxes) < 10 else int(0.15 * len(boxes) + 1e-9)
    kept, classes, weights = [], [], []
    for c in tags.nonzero()[:, 0].tolist():
        order = scores[:, c].argsort(descending=True, stable=True)[:most]
        chosen = order[overlap(boxes[order], boxes[order]).tril(-1).amax(1) < 0.2]
        kept.append(chosen)
        weights.append(scores[chosen, c])
        classes.append(torch.full_like(chosen, c + 1))
    pseudo = boxes[torch.cat(kept)]
    best, index = overlap(boxes, pseudo).max(1)
    label = torch.where(best >= 0.5, torch.cat(classes)[index], 0)
    return label, torch.cat(weights)[index], pseudo[index]


def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU `[N, M]`."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    both = (high - low).clamp(0).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return both / (areas[0][:, None] + areas[1] - both)


def encode(target: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    size, wanted = boxes[:, 2:] - boxes[:, :2], target[:, 2:] - target[:, :2]
    shift = (target[:, :2] + target[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
    return torch.cat([10 * shift / size, 5 * (wanted / size).log()], 1)


def make_adam(state: dict[str, torch.Tensor], lr: float) -> torch.optim.Adam:
    """Makes the trained tensors leaves with gradients; L2 on weights, twice the lr for biases."""
    free = [name for name in state if not any(one in name for one in FROZEN)]
    for name in free:
        state[name].requires_grad_()
    weights = [state[name] for name in free if name.endswith("weight")]
    biases = [state[name] for name in free if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": biases, "lr": 2 * lr}]
    return torch.optim.Adam(groups, lr=lr)

"""detectron2's Faster R-CNN R50-FPN written out in PyTorch over its own tensor names, at any width.

Facts of detectron2 0.4's configuration of R50-FPN with MSRA's weights: the stride of a stage in its
first 1x1 convolution, frozen batch norm, nearest x2 and sum in the pyramid, P6 by subsampling,
anchors at multiples of the stride (offset 0), RoIAlign with the half-pixel shift, background last.
Nothing of `weaksam_jax` is used.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bridge.runtime.torchvision_ops import nms

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)  # height / width
MAX_LOG = math.log(1000 / 16)
BODY, RPN, HEADS = "backbone.bottom_up.", "proposal_generator.rpn_head.", "roi_heads."


def random_tensors(width, channels, classes, hidden, seed=0) -> dict[str, Tensor]:
    """A state_dict with weights of about unit gain; nothing of the norms is trivial."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}

    def uniform(count, low, high):
        return torch.rand(count, generator=generator) * (high - low) + low

    def weight(name, *shape, gain=1.0):
        spread = gain * (2 / math.prod(shape[1:])) ** 0.5
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) * spread

    def norm(name, count, low=0.6, high=1.0):
        tensors[f"{name}.weight"] = uniform(count, low, high)
        tensors[f"{name}.bias"] = uniform(count, -0.2, 0.2)
        tensors[f"{name}.running_mean"] = uniform(count, -0.2, 0.2)
        tensors[f"{name}.running_var"] = uniform(count, 0.6, 1.4)

    def layer(name, *shape, gain=1.0):
        weight(name, *shape, gain=gain)
        tensors[f"{name}.bias"] = uniform(shape[0], -0.2, 0.2)

    weight(f"{BODY}stem.conv1", width, 3, 7, 7, gain=1 / 60)  # pixels are not divided
    norm(f"{BODY}stem.conv1.norm", width)
    inputs = width
    for stage, blocks in BLOCKS.items():
        inner = width * 2 ** (stage - 2)
        for i in range(blocks):
            here = f"{BODY}res{stage}.{i}."
            sides = {"conv1": (inner, inputs, 1), "conv2": (inner, inner, 3)}
            sides["conv3"] = (4 * inner, inner, 1)
            if i == 0:
                sides["shortcut"] = (4 * inner, inputs, 1)
            for name, (out, into, side) in sides.items():
                weight(here + name, out, into, side, side)
                norm(f"{here}{name}.norm", out, *((0.2, 0.4) if name == "conv3" else ()))
            inputs = 4 * inner
        layer(f"backbone.fpn_lateral{stage}", channels, inputs, 1, 1)
        layer(f"backbone.fpn_output{stage}", channels, channels, 3, 3, gain=0.4)
    layer(f"{RPN}conv", channels, channels, 3, 3)
    layer(f"{RPN}objectness_logits", 3, channels, 1, 1, gain=0.4)
    layer(f"{RPN}anchor_deltas", 12, channels, 1, 1, gain=0.2)
    layer(f"{HEADS}box_head.fc1", hidden, channels * 49)
    layer(f"{HEADS}box_head.fc2", hidden, hidden)
    layer(f"{HEADS}box_predictor.cls_score", classes + 1, hidden)
    layer(f"{HEADS}box_predictor.bbox_pred", 4 * classes, hidden)
    return tensors


class PlainDetector:
    """tensors: a state_dict; sizes: of the anchors of P2..P6; canonical: pixels of level P4;
    ratio: samples of RoIAlign along a cell's side (detectron2 itself takes ceil(side / 7))."""

    def __init__(self, tensors, sizes, canonical=224, ratio=2):
        self.t, self.sizes, self.canonical, self.ratio = tensors, sizes, canonical, ratio

    def conv(self, name, x, stride=1):
        kernel = self.t[f"{name}.weight"]
        return F.conv2d(x, kernel, self.t.get(f"{name}.bias"), stride, kernel.shape[-1] // 2)

    def conv_norm(self, name, x, stride=1):
        scale, bias, mean, var = (
            self.t[f"{name}.norm.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (self.conv(name, x, stride) - mean) / torch.sqrt(var + 1e-5) * scale + bias

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """P2..P6 of normalised images `[B, 3, H, W]`, sides multiples of 32."""
        x = F.relu(self.conv_norm(f"{BODY}stem.conv1", images, 2))
        x = F.max_pool2d(x, 3, 2, 1)
        maps = {}
        for stage, blocks in BLOCKS.items():
            for i in range(blocks):
                here, stride = f"{BODY}res{stage}.{i}.", 2 if i == 0 and stage > 2 else 1
                y = F.relu(self.conv_norm(f"{here}conv1", x, stride))
                y = F.relu(self.conv_norm(f"{here}conv2", y))
                y = self.conv_norm(f"{here}conv3", y)
                x = F.relu(y + (self.conv_norm(f"{here}shortcut", x, stride) if i == 0 else x))
            maps[stage] = x
        levels, above = [], None
        for stage in (5, 4, 3, 2):
            merged = self.conv(f"backbone.fpn_lateral{stage}", maps[stage])
            if above is not None:
                merged = merged + F.interpolate(above, scale_factor=2, mode="nearest")
            levels.insert(0, self.conv(f"backbone.fpn_output{stage}", merged))
            above = merged
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]

    def rpn(self, levels):
        """Objectness `[B, N]` and deltas `[B, N, 4]` of each level, anchors of a cell together."""
        outputs = []
        for level in levels:
            x = F.relu(self.conv(f"{RPN}conv", level))
            logits = self.conv(f"{RPN}objectness_logits", x).permute(0, 2, 3, 1).flatten(1)
            deltas = self.conv(f"{RPN}anchor_deltas", x)
            batch, _, height, width = deltas.shape
            deltas = deltas.view(batch, 3, 4, height, width).permute(0, 3, 4, 1, 2)
            outputs.append((logits, deltas.reshape(batch, -1, 4)))
        return outputs

    def anchors(self, levels) -> list[Tensor]:
        made = []
        for level, stride, size in zip(levels, STRIDES, self.sizes, strict=True):
            rows = []
            for y in range(level.shape[2]):
                for x in range(level.shape[3]):
                    for ratio in RATIOS:
                        w = math.sqrt(size**2 / ratio)
                        h = ratio * w
                        cx, cy = x * stride, y * stride
                        rows.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
            made.append(torch.tensor(rows))
        return made

    def roi_align(self, level: Tensor, box: Tensor, stride: int) -> Tensor:
        """`[C, 7, 7]` of one box on a map `[C, H, W]`."""
        height, width = level.shape[1:]
        steps = (torch.arange(7 * self.ratio) + 0.5) / (7 * self.ratio)
        x1, y1, x2, y2 = box / stride - 0.5
        x, y = x1 + steps * (x2 - x1), y1 + steps * (y2 - y1)
        # Cell i of n lies at (2 i + 1) / n - 1.
        grid = torch.stack(
            torch.meshgrid((2 * x + 1) / width - 1, (2 * y + 1) / height - 1, indexing="xy"), -1
        )
        inside = ((y >= -1) & (y <= height))[:, None] & ((x >= -1) & (x <= width))
        sampled = F.grid_sample(
            level[None], grid[None], padding_mode="border", align_corners=False
        )[0]
        return F.avg_pool2d(sampled * inside, self.ratio)

    def head(self, levels, image: int, boxes: Tensor):
        """Class logits `[R, classes + 1]` and deltas `[R, 4 classes]` of boxes `[R, 4]`."""
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        places = torch.floor(4 + torch.log2(area.sqrt() / self.canonical + 1e-8)).clamp(2, 5) - 2
        pooled = [
            self.roi_align(levels[int(k)][image], box, STRIDES[int(k)])
            for box, k in zip(boxes, places, strict=True)
        ]
        x = torch.stack(pooled).flatten(1)
        for name in ("fc1", "fc2"):
            x = F.relu(self.linear(f"{HEADS}box_head.{name}", x))
        predictor = f"{HEADS}box_predictor."
        return self.linear(f"{predictor}cls_score", x), self.linear(f"{predictor}bbox_pred", x)

    def linear(self, name, x):
        return F.linear(x, self.t[f"{name}.weight"], self.t[f"{name}.bias"])

    def proposals(self, levels, size, pre_nms, post_nms) -> Tensor:
        """Proposals `[R, 4]` of image 0, best first; size: (height, width)."""
        boxes, scores = [], []
        for anchors, (logits, deltas) in zip(self.anchors(levels), self.rpn(levels), strict=True):
            order = torch.sort(logits[0], descending=True, stable=True).indices[:pre_nms]
            found = clip(apply_deltas(deltas[0, order], anchors[order], (1, 1, 1, 1)), size)
            whole = (found[:, 2:] > found[:, :2]).all(1)
            found, score = found[whole], logits[0, order][whole]
            kept = nms(found, score, 0.7)
            boxes.append(found[kept])
            scores.append(score[kept])
        order = torch.sort(torch.cat(scores), descending=True, stable=True).indices[:post_nms]
        return torch.cat(boxes)[order]

    def detect(self, padded, size, pre_nms, post_nms, threshold, iou, count):
        """(scores, boxes, labels), best first, of one normalised image, zero-padded at right and
        bottom: `[1, 3, H, W]`; size: its (height, width)."""
        levels = self.pyramid(padded)
        proposals = self.proposals(levels, size, pre_nms, post_nms)
        logits, deltas = self.head(levels, 0, proposals)
        scores = F.softmax(logits, 1)[:, :-1]
        found = []
        for c in range(scores.shape[1]):
            boxes = apply_deltas(deltas[:, 4 * c : 4 * c + 4], proposals, (10, 10, 5, 5))
            boxes, score = clip(boxes, size), scores[:, c]
            likely = (score > threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
            boxes, score = boxes[likely], score[likely]
            kept = nms(boxes, score, iou)
            found += [(float(score[k]), boxes[k].tolist(), c) for k in kept]
        found.sort(key=lambda one: -one[0])
        return [list(column) for column in zip(*found[:count], strict=True)]


def apply_deltas(deltas, boxes, weights):
    dx, dy, dw, dh = (deltas / torch.tensor(weights)).unbind(1)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + w / 2 + dx * w, boxes[:, 1] + h / 2 + dy * h
    w, h = w * dw.clamp(max=MAX_LOG).exp(), h * dh.clamp(max=MAX_LOG).exp()
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)


def clip(boxes, size):
    height, width = size
    return torch.stack([boxes[:, i].clamp(0, (width, height)[i % 2]) for i in range(4)], 1)


def msra_pixels(image) -> Tensor:
    """uint8 RGB `[H, W, 3]` -> float BGR `[1, 3, H, W]`."""
    bgr = torch.tensor(image[..., ::-1].copy()).float() - torch.tensor([103.53, 116.28, 123.675])
    return bgr.permute(2, 0, 1)[None]

"""The published detectors in plain PyTorch, straight from tensors under their published names.

Written from what docs/provenance/mil.md, sections 1 and 2, says of the two official codes, one
layer per line, and RoI pooling as a loop: an independent form of `MilDetector` and of what
`bridge.weights.wetectron` claims.
"""

import math

import torch
import torch.nn.functional as F

# Per layer of VGG16: its place in torchvision's `features`, its name in the official OICR (mmdet).
VGG = (
    *((0, "conv1_1"), (2, "conv1_2"), (4, "pool")),
    *((5, "conv2_1"), (7, "conv2_2"), (9, "pool")),
    *((10, "conv3_1"), (12, "conv3_2"), (14, "conv3_3"), (16, "pool")),
    *((17, "conv4_1"), (19, "conv4_2"), (21, "conv4_3")),
    *((24, "conv5_1"), (26, "conv5_2"), (28, "conv5_3")),
)
CONVOLUTIONS = tuple((place, name) for place, name in VGG if name != "pool")


def random_state(kind, channels, width, classes, seed=0, side=7, box=False):
    """Seeded weights under the published names: "caffe", "torchvision", "wetectron", "mmdet"."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def layer(name, *shape, gain=1.0):
        fan = math.prod(shape[1:])
        weight = torch.randn(shape, generator=generator) * gain * math.sqrt(2 / fan)
        state[f"{name}.weight"] = weight
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    body = {"wetectron": "backbone.body.features.", "mmdet": "backbone."}.get(kind, "features.")
    before = 3
    for place, name in CONVOLUTIONS:
        after = channels[int(name[4]) - 1]
        layer(f"{body}{name if kind == 'mmdet' else place}", after, before, 3, 3)
        before = after
    fc6, fc7 = {
        "caffe": ("classifier.1", "classifier.4"),
        "torchvision": ("classifier.0", "classifier.3"),
        "wetectron": tuple(f"roi_heads.feature_extractor.classifier.{k}" for k in (1, 4)),
        "mmdet": ("roi_head.bbox_head.fc1", "roi_head.bbox_head.fc2"),
    }[kind]
    layer(fc6, width, before * side * side)
    layer(fc7, width, width)
    if kind in ("caffe", "torchvision"):
        layer("classifier.6", 10, width)
    if kind == "wetectron":
        for name in ("cls_score", "det_score", "ref1", "ref2", "ref3"):
            layer(f"roi_heads.predictor.{name}", classes + 1, width)
        for k in (1, 2, 3):
            layer(f"roi_heads.predictor.bbox_pred{k}", 4 * (classes + 1), width)
        layer("roi_heads.model_sim.mlp.0", width, width)
        layer("roi_heads.model_sim.mlp.2", 5, width)
    if kind == "mmdet":
        for k in (1, 2):
            layer(f"roi_head.bbox_head.fc_cls{k}", classes, width)
        for k in (1, 2, 3):
            layer(f"roi_head.bbox_head.fc_refine{k}", classes + 1, width)
        if box:
            layer("roi_head.bbox_head.fc_bbox", 4, width)
    return state


def vgg_features(state, prefix, x, by_place, rectify_last):
    """Images [B, 3, H, W] -> features [B, C, H/8, W/8]."""
    for place, name in VGG:
        if name == "pool":
            x = F.max_pool2d(x, kernel_size=2, stride=2)
            continue
        key = prefix + (str(place) if by_place else name)
        step = 2 if name.startswith("conv5") else 1
        weight, bias = state[key + ".weight"], state[key + ".bias"]
        x = F.conv2d(x, weight, bias, padding=step, dilation=step)
        if name != "conv5_3" or rectify_last:
            x = torch.relu(x)
    return x


def c_round(value):
    """C's round: half away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def roi_pool(features, box, scale=0.125, side=7):
    """Max pooling of one box from features [C, H, W]: [C, side, side]; an empty bin is 0."""
    channels, height, width = features.shape
    x1, y1, x2, y2 = (c_round(float(v) * scale) for v in box)
    w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    out = features.new_zeros(channels, side, side)
    for i in range(side):
        top, bottom = (i * h) // side + y1, -((-(i + 1) * h) // side) + y1
        top, bottom = (min(max(v, 0), height) for v in (top, bottom))
        for j in range(side):
            left, right = (j * w) // side + x1, -((-(j + 1) * w) // side) + x1
            left, right = (min(max(v, 0), width) for v in (left, right))
            if bottom > top and right > left:
                out[:, i, j] = features[:, top:bottom, left:right].amax((1, 2))
    return out


def forward(state, kind, x, boxes):
    """One image [1, 3, H, W] and its boxes [N, 4], at inference -> a dictionary of `features`,
    `cls`, `det`, `refine` [3, N, C+1], `deltas` [3, N, C+1, 4] (mmdet: [N, 4] or None) and `scores`
    (WSDDN's products)."""
    wetectron = kind == "wetectron"
    body = "backbone.body.features." if wetectron else "backbone."
    maps = vgg_features(state, body, x, by_place=wetectron, rectify_last=not wetectron)
    pooled = torch.stack([roi_pool(maps[0], box) for box in boxes])

    def linear(name, value):
        prefix = "roi_heads." if wetectron else "roi_head.bbox_head."
        return F.linear(value, state[f"{prefix}{name}.weight"], state[f"{prefix}{name}.bias"])

    names = (
        ("feature_extractor.classifier.1", "feature_extractor.classifier.4")
        if wetectron
        else ("fc1", "fc2")
    )
    hidden = torch.relu(linear(names[0], pooled.flatten(1)))
    hidden = torch.relu(linear(names[1], hidden))
    if wetectron:
        cls, det = (linear(f"predictor.{n}_score", hidden) for n in ("cls", "det"))
        refine = [linear(f"predictor.ref{k}", hidden) for k in (1, 2, 3)]
        deltas = [linear(f"predictor.bbox_pred{k}", hidden) for k in (1, 2, 3)]
        deltas = torch.stack(deltas).unflatten(-1, (-1, 4))
    else:
        cls, det = (linear(f"fc_cls{k}", hidden) for k in (1, 2))
        refine = [linear(f"fc_refine{k}", hidden) for k in (1, 2, 3)]
        regressed = "roi_head.bbox_head.fc_bbox.weight" in state
        deltas = linear("fc_bbox", hidden) if regressed else None
    return {
        "features": maps,
        "cls": cls,
        "det": det,
        "refine": torch.stack(refine),
        "deltas": deltas,
        "scores": torch.softmax(cls, 1) * torch.softmax(det, 0),
    }

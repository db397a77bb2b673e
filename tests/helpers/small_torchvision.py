"""torchvision's ResNet-50 and Faster R-CNN with few channels and seeded random weights."""

import bridge.runtime.torchvision_ops  # noqa: F401

# isort: split
import sys

import numpy as np
import torch
import torchvision.ops.poolers
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.roi_align import _roi_align

# The compiled operator is missing on CPU-only torch; this is torchvision's own formula in Python,
# without its torch.compile.
PYTHON_ROI_ALIGN = _roi_align.__wrapped__
_MODULE = sys.modules["torchvision.ops.roi_align"]  # (the package has the function of that name)
_INTERPOLATE = _MODULE._bilinear_interpolate


def _interpolate_inside(features, rois, y, x, *masks):
    """The compiled operator's samples are 0 more than a cell outside, the Python one's are not."""

    def inside(position, size):
        return (position >= -1) & (position <= size)

    height, width = features.shape[2:]
    rows = inside(y, height)[:, None, :, None, :, None]
    columns = inside(x, width)[:, None, None, :, None, :]
    return _INTERPOLATE(features, rois, y, x, *masks) * (rows & columns)


_MODULE._bilinear_interpolate = _interpolate_inside


def roi_align(features, rois, output_size, spatial_scale, sampling_ratio):
    return PYTHON_ROI_ALIGN(features, rois, spatial_scale, *output_size, sampling_ratio, False)


torchvision.ops.poolers.roi_align = roi_align


class SmallResNet(nn.Module):
    """torchvision's bottleneck blocks under ResNet-50's names, `width` channels instead of 64."""

    def __init__(self, width, stride_in_1x1=False, dilate_last=False):
        super().__init__()
        norm = FrozenBatchNorm2d
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = norm(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        inputs = width
        for k, blocks in enumerate((3, 4, 6, 3)):
            dilated, planes = dilate_last and k == 3, width * 2**k
            layer = nn.Sequential()
            for i in range(blocks):
                stride = 2 if i == 0 and k > 0 and not dilated else 1
                shortcut = None
                if i == 0:
                    conv = nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False)
                    shortcut = nn.Sequential(conv, norm(4 * planes))
                dilation = 2 if dilated else 1
                block = Bottleneck(inputs, planes, stride, shortcut, 1, 64, dilation, norm)
                if stride_in_1x1:
                    block.conv1.stride, block.conv2.stride = (stride, stride), (1, 1)
                layer.append(block)
                inputs = 4 * planes
            setattr(self, f"layer{k + 1}", layer)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


def randomise(module, seed=0):
    """Weights of about unit gain; every vector of the norms random."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(x, low, high):
        x.copy_(torch.rand(x.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, value in sorted(module.state_dict().items()):
            if value.ndim > 1:
                spread = (2 / value[0].numel()) ** 0.5
                value.copy_(torch.randn(value.shape, generator=generator) * spread)
            elif name.endswith("running_var"):
                uniform(value, 0.6, 1.4)
            elif name.endswith("weight"):  # the last norm of a block small: 16 blocks add up
                uniform(value, *((0.2, 0.4) if "bn3" in name else (0.6, 1.0)))
            else:
                uniform(value, -0.2, 0.2)
    return module


def small_faster_rcnn(width, channels, classes, sizes, fc_width=24, seed=0, **options):
    """`classes` without the background; anchors of one size per level; P2..P6."""
    body = SmallResNet(width)
    layers = {f"layer{k + 1}": str(k) for k in range(4)}
    widths = [4 * width * 2**k for k in range(4)]
    model = FasterRCNN(
        BackboneWithFPN(body, layers, widths, channels),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_head=TwoMLPHead(channels * 49, fc_width),
        box_predictor=FastRCNNPredictor(fc_width, classes + 1),
        **options,
    )
    return randomise(model, seed)


def numpy_state(module, gradients=False):
    """state_dict as NumPy arrays; gradients: of the parameters, beside the buffers' values."""
    state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    if gradients:
        state |= {name: value.grad.numpy() for name, value in module.named_parameters()}
    return {name: np.array(value) for name, value in state.items()}

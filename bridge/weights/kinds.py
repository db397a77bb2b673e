"""The table of what can be converted, and the conversion of a file.

A kind is one row of `KINDS` and one file beside this one. Names of arrays are those of the Flax
modules joined by "/", layouts are Flax's: convolution kernels HWIO, depthwise kernels
`[k, k, 1, C]`. What a file's metadata says: `bridge.weights.metadata`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bridge.weights import (
    dino_detrex,
    dino_mmdet,
    dino_official,
    lite0,
    mmdet_oicr,
    resnet50,
    vgg16,
    wetectron,
)
from bridge.weights import faster_rcnn_detectron2 as detectron2
from bridge.weights import faster_rcnn_torchvision as torchvision
from bridge.weights.metadata import check_meaning
from bridge.weights.naming import fractions
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, read_arrays, write_arrays
from weaksam_jax.supervision import GUARDED, Supervision, parse_kinds, saw, stated

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class WayBack:
    """How a detector of ours becomes a published file.

    detector: its kind. write: (name of the arrays' file, arrays) -> content of a PyTorch
    checkpoint. means: arrays -> fields of the model's config that such a checkpoint stands for and
    no array tells.
    """

    detector: str
    write: Callable[[str | Path, Arrays], dict[str, Any]]
    means: Callable[[Arrays], dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of published file.

    about: what it is. read: (published file, options by name) -> (arrays, metadata). seen: what
    supervision such files have seen; None: what their metadata say. back: None where there is no
    way back. options: names of those that `read` takes. installed: whether `read(None)` finds a
    file that a package brings.
    """

    about: str
    read: Callable[..., tuple[Arrays, dict[str, str]]]
    seen: Supervision | None
    back: WayBack | None = None
    options: frozenset[str] = frozenset()
    installed: bool = False


IMAGENET = ["tags"]  # a class for each image
# Published detectors; one that was retrained on pseudo boxes is told by --supervision tags.
BOXES = ["boxes"]
KINDS = {
    "efficientnet_lite0": Kind(
        "ImageNet, the installed package's",
        lite0.efficientnet_lite0_arrays,
        lite0.SEEN,
        installed=True,
    ),
    "vgg16": Kind(
        "ImageNet, Caffe's or torchvision's",
        vgg16.vgg16_arrays,
        saw(IMAGENET, "ImageNet classes: VGG16"),
    ),
    "resnet50": Kind(
        "ImageNet, torchvision's",
        resnet50.resnet50_arrays,
        saw(IMAGENET, "ImageNet classes: ResNet-50 of torchvision"),
    ),
    "resnet50_msra": Kind(
        "ImageNet, detectron2's R-50.pkl",
        resnet50.resnet50_msra_arrays,
        saw(IMAGENET, "ImageNet classes: ResNet-50 of MSRA"),
    ),
    "wetectron": Kind(
        "MIL detector of wetectron (MIST)",
        wetectron.wetectron_arrays,
        saw(["tags"], "tags of images: MIL detector of wetectron"),
        back=WayBack("mil", wetectron.wetectron_back, wetectron.wetectron_means),
    ),
    "mmdet_oicr": Kind(
        "MIL detector in mmdet (OICR)",
        mmdet_oicr.mmdet_oicr_arrays,
        saw(["tags"], "tags of images: MIL detector in mmdet"),
        back=WayBack("mil", mmdet_oicr.mmdet_oicr_back, mmdet_oicr.mmdet_oicr_means),
    ),
    "faster_rcnn_torchvision": Kind(
        "Faster R-CNN R50-FPN of torchvision",
        torchvision.faster_rcnn_torchvision_arrays,
        saw(BOXES, "boxes: Faster R-CNN of torchvision"),
        back=WayBack(
            "faster_rcnn",
            torchvision.faster_rcnn_torchvision_back,
            torchvision.faster_rcnn_torchvision_means,
        ),
        options=frozenset({"epsilon", "classes"}),
    ),
    "faster_rcnn_detectron2": Kind(
        "Faster R-CNN R50-FPN of detectron2",
        detectron2.faster_rcnn_detectron2_arrays,
        saw(BOXES, "boxes: Faster R-CNN of detectron2"),
        back=WayBack(
            "faster_rcnn",
            detectron2.faster_rcnn_detectron2_back,
            detectron2.faster_rcnn_detectron2_means,
        ),
        options=frozenset({"classes"}),
    ),
    "dino_mmdet": Kind(
        "DINO R50 of mmdetection",
        dino_mmdet.dino_mmdet_arrays,
        saw(BOXES, "boxes: DINO of mmdetection"),
        back=WayBack("dino", dino_mmdet.dino_mmdet_back, dino_mmdet.dino_mmdet_means),
        options=frozenset({"heads", "classes"}),
    ),
    "dino_official": Kind(
        "DINO R50 of its authors",
        dino_official.dino_official_arrays,
        saw(BOXES, "boxes: DINO of its authors"),
        options=frozenset({"heads", "classes"}),
    ),
    "dino_detrex": Kind(
        "DINO R50 of detrex",
        dino_detrex.dino_detrex_arrays,
        saw(BOXES, "boxes: DINO of detrex"),
        options=frozenset({"heads", "classes"}),
    ),
    "ours": Kind("weights of this project, stated anew (--supervision)", read_arrays, None),
}


def convert(
    kind: str,
    to: str | Path,
    source: str | Path | None = None,
    *,
    supervision: str | None = None,
    note: str | None = None,
    **options: Any,
) -> Path:
    """Writes a published file as a safetensors file of arrays and metadata; returns its path.

    kind: a row of `KINDS`. source: the published file (None: an installed one). supervision: what
    it has seen, "tags,boxes" (None: as the kind says, or the file); note: whose it is, for the
    ledger of runs that start from it. options: what the file does not tell, see the kind's `read`.
    Raises `BadInput` when the source is missing or does not fit, or an option is none of the
    kind's.
    """
    row = KINDS[kind]
    for name in sorted(options.keys() - row.options):
        raise BadInput(f"--{name}", f"is no option of {kind}", "leave it out")
    if source is None and not row.installed:
        raise BadInput("--from", "is missing", f"name the published file of {kind}")
    kinds = None if supervision is None else parse_kinds(supervision, "--supervision")
    arrays, metadata = row.read(source, **options)
    _check_finite(source or kind, arrays)
    seen = row.seen or stated(metadata, source)
    if kinds is not None:
        seen = saw(kinds, f"stated by hand: {seen.source}")
    seen = saw(seen.kinds, note or seen.source)
    write_arrays(to, arrays, metadata | seen.metadata())
    return Path(to)


def _check_finite(source: str | Path, arrays: Arrays) -> None:
    """Finite numbers may give others: a variance of 0 without epsilon, large ones multiplied."""
    for name, value in arrays.items():
        fractions(value, f"what becomes {name}", source, hint="give weights of finite numbers")


def convert_back(kind: str, to: str | Path, source: str | Path) -> Path:
    """Writes a safetensors file of arrays as a checkpoint of a kind that has a way back.

    Raises `BadInput` when the file is of another network than such checkpoints are, has seen
    supervision that no file of the kind has, or holds numbers that are not finite.
    """
    raw, metadata = read_arrays(source)
    hint = "give weights of the network that you named"
    arrays = {name: fractions(value, name, source, hint=hint) for name, value in raw.items()}
    back = KINDS[kind].back
    content = back.write(source, arrays)
    means = back.means(arrays)
    check_meaning(metadata, means, source, kind=kind, detector=back.detector)
    _check_told(kind, stated(metadata, source), source)
    with atomic_path(to) as temporary:
        torch.save(content, temporary)
    return Path(to)


def _check_told(kind: str, seen: Supervision, source: str | Path) -> None:
    """A checkpoint has no place for what it has seen: it comes back as all of its kind do."""
    usual = KINDS[kind].seen
    for one in GUARDED:
        if one in seen.kinds and one not in usual.kinds:
            problem = f"has seen {seen.text}, and a file of {kind} would come back as {usual.text}"
            raise BadInput(source, problem, "keep the safetensors file")

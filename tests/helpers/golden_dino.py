"""Numbers of mmdetection's DINO on seeded weights, and its names as ours.

`../shared/golden` has all arrays (its notes say what each one is); where it is absent, the extracts
beside the tests of DINO have the weights and the values that matter most.
"""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

from bridge.weights.naming import conv_names
from bridge.weights.r50_fpn import to_ours
from bridge.weights.resnet50 import RESNET_TORCHVISION, torchvision_prefixes
from weaksam_jax.detectors.dino.config import DenoisingConfig, ModelConfig
from weaksam_jax.detectors.dino.denoising import Noise
from weaksam_jax.engine.weights import unflatten

TESTS = Path(__file__).resolve().parents[1]
SHARED = TESTS.parents[1] / "shared" / "golden"
EXTRACTS = TESTS / "detectors" / "dino" / "golden"

# Ours of the golden's size; the official code's groups.
MODEL = ModelConfig(
    backbone="resnet50",
    backbone_width=8,
    strides=(8, 16, 32, 64),
    channels=64,
    ffn_width=128,
    queries=50,
    neck_groups=32,
)
DENOISING = DenoisingConfig(grouping="batch")
CLASSES, PADDED = 5, (96, 128)
SIZE = np.array([[96, 101], [77, 128]], np.int32)

_NAMES = (
    (r"level_embed", r"encoder/level_embed"),
    (r"query_embedding\.weight", r"query_embed"),
    (r"dn_query_generator\.label_embedding\.weight", r"label_embed"),
    (r"memory_trans_(fc|norm)\.", r"memory_\1/"),
    (r"bbox_head\.cls_branches\.(\d+)\.", r"class_heads_\1/"),
    (r"bbox_head\.reg_branches\.(\d+)\.0\.", r"box_heads_\1/fc0/"),
    (r"bbox_head\.reg_branches\.(\d+)\.2\.", r"box_heads_\1/fc1/"),
    (r"bbox_head\.reg_branches\.(\d+)\.4\.", r"box_heads_\1/fc2/"),
    (r"(en|de)coder\.layers\.(\d+)\.", r"\1coder/layer\2/"),
    (r"decoder\.ref_point_head\.layers\.(\d+)\.", r"decoder/ref_point_head/fc\1/"),
    (r"decoder\.norm\.", r"decoder/norm/"),
    (r"neck\.convs\.(\d+)\.conv\.", r"neck/level\1_conv/"),
    (r"neck\.convs\.(\d+)\.gn\.", r"neck/level\1_norm/"),
    (r"neck\.extra_convs\.0\.conv\.", r"neck/level3_conv/"),
    (r"neck\.extra_convs\.0\.gn\.", r"neck/level3_norm/"),
    (r"self_attn\.attn\.out_proj\.", r"self_attn/out/"),
    (r"(self|cross)_attn\.(\w+)\.", r"\1_attn/\2/"),
    (r"ffn\.layers\.0\.0\.", r"ffn/fc0/"),
    (r"ffn\.layers\.1\.", r"ffn/fc1/"),
    (r"norms\.(\d)\.", r"norm\1/"),
)


@functools.cache
def golden(part: str) -> dict[str, np.ndarray]:
    """All arrays of a file of ../shared/golden ("transformer" or "model"), else of the extracts;
    skips where there are none."""
    path = SHARED / f"golden_dino_{part}.npz"
    paths = [path] if path.exists() else sorted(EXTRACTS.glob(f"{part}_*.npz"))
    if not paths:
        pytest.skip(f"no golden numbers at {path}")
    return {name: value for one in paths for name, value in np.load(one).items()}


def is_whole(part: str) -> bool:
    """Whether all arrays are there, and not only the extracts."""
    return (SHARED / f"golden_dino_{part}.npz").exists()


def of_case(part: str, case: str) -> dict[str, np.ndarray]:
    """The arrays of one case ("g35"), named without it."""
    named = golden(part).items()
    return {k.removeprefix(f"{case}."): v for k, v in named if k.startswith(f"{case}.")}


def need(arrays: dict, *names: str) -> None:
    """Skips where the extracts lack an array."""
    for name in names:
        if name not in arrays:
            pytest.skip(f"the extracts have no {name}")


def params_of(part: str, prefix: str = "w.") -> dict:
    """Our parameters (or gradients) of the golden's arrays below a prefix."""
    named = {k.removeprefix(prefix): v for k, v in golden(part).items() if k.startswith(prefix)}
    return unflatten(our_names(named))


def our_gradients(theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients of mmdetection's names in ours; of the backbone, of convolutions alone."""
    ours = {f"{torchvision_prefixes(name, 'backbone.')[0]}.weight": name for name in conv_names()}
    trunk = {
        f"backbone/{ours[name]}/conv/kernel": value.transpose(2, 3, 1, 0)
        for name, value in theirs.items()
        if name in ours
    }
    return trunk | our_names({k: v for k, v in theirs.items() if k not in ours})


def our_names(theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of mmdetection's names in ours, in our layouts."""
    trunk = {k.removeprefix("backbone."): v for k, v in theirs.items() if k.startswith("backbone.")}
    ours = to_ours(trunk, RESNET_TORCHVISION, "golden") if trunk else {}
    ours = {f"backbone/{name}": value for name, value in ours.items()}
    for name, value in theirs.items():
        if name.startswith("backbone."):
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        ours |= _layout(name, value)
    return ours


def _layout(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    if "in_proj" in name:
        layer, kind = name.split("/attn/")[0], name.split("_")[-1]
        leaf = "kernel" if kind == "weight" else "bias"
        thirds = zip(("query", "key", "value"), np.split(value, 3), strict=True)
        return {f"{layer}/{part}/{leaf}": one.T for part, one in thirds}
    if not name.endswith("/weight"):
        return {name: value}
    parent = name.removesuffix("weight")
    if value.ndim == 1:
        return {f"{parent}scale": value}
    return {f"{parent}kernel": value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)}


def levels_of(arrays: dict, stem: str = "feat") -> list[np.ndarray]:
    """Maps `[B, H, W, C]`."""
    return [arrays[f"{stem}{i}"].transpose(0, 2, 3, 1) for i in range(4)]


def batch_of(case: dict) -> dict[str, np.ndarray]:
    """The objects of a case, and the sizes of its images."""
    objects = {"boxes": "gt.boxes_xyxy_px", "labels": "gt.labels", "valid": "gt.valid"}
    return {"size": SIZE, **{ours: case[theirs] for ours, theirs in objects.items()}}


def noise_of(case: dict, slots: int) -> Noise:
    """The recorded draws as noise of so many slots, 0 in those beyond the recorded ones."""

    def flat(name):
        drawn = case[f"dn.noise_{name}"]  # [B, groups, positive or negative, objects, ...]
        drawn = drawn.reshape(len(drawn), -1, *drawn.shape[4:])
        rest = [(0, 0)] * (drawn.ndim - 2)
        return np.pad(drawn, ((0, 0), (0, slots - drawn.shape[1]), *rest))

    return Noise(flat("p"), flat("new_label"), flat("sign01") == 0, flat("part01"))


def close(ours, theirs, rtol: float = 1e-4) -> None:
    """Equal to `rtol` of the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape and theirs.size
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * np.abs(theirs).max())

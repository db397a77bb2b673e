"""What the MIL detector starts from: fresh weights, ImageNet's, or a whole detector."""

import jax
import numpy as np
import pytest
from configs import vary
from tiny_mil import TINY, train, write_random

from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.detectors.mil import MilConfig, MilDetector
from weaksam_jax.detectors.mil.config import STATED
from weaksam_jax.detectors.start import start_from
from weaksam_jax.engine.weights import Weights, flatten, read_weights, unflatten
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_arrays

VGG = vary(MilConfig(), model={"backbone": "vgg16"}).model
IMAGENET = {"backbone": "vgg16", "pixels": "bgr"}
OPTIONAL = ("tags/", "drop_block/")


def fresh():
    """Nested zeros in the place of a small detector's parameters."""
    layers = ("backbone/conv1_1", "fc6", "fc7", "cls", "deltas_0", "tags", "drop_block/conv1")
    return unflatten({f"{name}/kernel": np.zeros((2, 3), np.float32) for name in layers})


def start(arrays, metadata, **changes):
    """The flat parameters that come of a file with these arrays."""
    found = start_from(
        fresh(),
        Weights("weights.safetensors", arrays, metadata),
        kind="mil",
        model=vary(MilConfig(), model={"backbone": "vgg16", **changes}).model,
        stated=STATED,
        optional=OPTIONAL,
        imagenet=("backbone/", "fc6/", "fc7/"),
    )
    return flatten(found)


def ones(*layers):
    return {f"{name}/kernel": np.ones((2, 3), np.float32) for name in layers}


def detector(stated):
    """Metadata of a MIL detector over VGG16 whose file states these fields of its model."""
    model = "".join(f', "{name}": {value}' for name, value in stated.items())
    return {"detector": "mil", "config": f'{{"model": {{"backbone": "vgg16"{model}}}}}'}


def test_without_a_file():
    given = fresh()
    options = {"kind": "mil", "stated": STATED}
    with pytest.raises(BadInput, match=r"vgg16.*optim\.init.*bridge\.convert.*scratch"):
        start_from(given, None, model=VGG, **options)
    assert start_from(given, None, model=VGG, scratch=True, **options) is given
    assert start_from(given, None, model=MilConfig().model, **options) is given
    with pytest.raises(BadInput, match="does not exist"):
        read_weights("nowhere.safetensors")


def test_imagenet_weights_leave_the_heads_fresh():
    arrays = ones("backbone/conv1_1", "fc6", "fc7")
    found = start(arrays, IMAGENET)
    assert {name for name, value in found.items() if np.asarray(value).all()} == arrays.keys()
    assert len(found) == 7
    del arrays["fc7/kernel"]
    with pytest.raises(BadInput, match="has no tensor fc7/kernel"):
        start(arrays, IMAGENET)


def test_a_whole_detector_may_lack_class_maps_and_drop_block_alone():
    whole = ones("backbone/conv1_1", "fc6", "fc7", "cls", "deltas_0")
    for metadata in ({}, detector({"rectify_last": "false"})):
        found = start(whole, metadata)
        assert {k for k, v in found.items() if np.asarray(v).all()} == whole.keys()
        fewer = {name: value for name, value in whole.items() if name != "cls/kernel"}
        with pytest.raises(BadInput, match="has no tensor cls/kernel"):
            start(fewer, metadata)
    with pytest.raises(BadInput, match="unknown tensor strange/kernel"):
        start(whole | ones("strange"), {})
    with pytest.raises(BadInput, match=r"fc6/kernel has the shape \[3, 3\], not \[2, 3\]"):
        start(whole | {"fc6/kernel": np.ones((3, 3), np.float32)}, {})


def test_what_shapes_do_not_tell_is_checked():
    arrays = ones("backbone/conv1_1", "fc6", "fc7")
    torchvision = {"backbone": "vgg16", "pixels": "rgb"}
    with pytest.raises(BadInput, match=r"RGB.*set model\.pixels"):
        start(arrays, torchvision)
    assert start(arrays, torchvision, pixels="torchvision")
    assert start(arrays, IMAGENET, pixels="torchvision")  # OICR's official code for COCO
    with pytest.raises(BadInput, match=r"holds weights of resnet50, not of vgg16"):
        start(arrays, {"backbone": "resnet50"})
    whole = arrays | ones("cls", "deltas_0")
    stated = {"rectify_last": "true", "background": "false", "pooling": '"max"', "pixels": '"oicr"'}
    right = {"rectify_last": True, "background": False, "pooling": "max", "pixels": "oicr"}
    assert start(whole, detector(stated), **right)
    for name in stated:
        own = getattr(VGG, name)
        with pytest.raises(BadInput, match=rf"model\.{name} {right[name]}, not {own}; set model"):
            start(whole, detector(stated), **{k: v for k, v in right.items() if k != name})


def test_training_starts_from_the_file_and_leaves_frozen_blocks_alone(tmp_path):
    data = write_mini(tmp_path / "data", 0, 2, 1, progress=False)
    split, rng = open_tags(data, "trainval"), np.random.default_rng(0)
    for record in split.records:
        write_random(tmp_path / "proposals", split.split, record, rng)
    config = vary(
        TINY,
        model={"backbone": "vgg16", "pooling": "max", "class_maps": False, "evidence": 0.0},
        loss={"tag_weight": 0.0},
        optim={
            "init": str(tmp_path / "init.safetensors"),
            "frozen": ("conv1", "conv2"),
            "pretrain_steps": 0,
            "steps": 2,
            "weight_decay": 0.5,
            "lr": 1e-2,
        },
    )
    shapes = flatten(MilDetector(config, split.classes).shapes())
    kept = {name: rng.normal(0, 0.02, one.shape).astype("f") for name, one in shapes.items()}
    write_arrays(tmp_path / "init.safetensors", kept)
    found = flatten(train(split, tmp_path / "proposals", config, tmp_path / "mil"))
    assert found.keys() == kept.keys() and "tags/kernel" not in found
    parts = ("kernel", "bias")
    frozen = {f"backbone/conv{b}_{k}/{p}" for b in (1, 2) for k in (1, 2) for p in parts}
    assert {name for name in found if np.array_equal(found[name], kept[name])} == frozen
    assert all(np.abs(found[name] - kept[name]).max() < 0.1 for name in found)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))

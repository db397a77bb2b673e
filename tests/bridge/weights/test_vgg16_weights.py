"""VGG16 and its detectors in published layouts: there and back, what is refused, published shapes.

That the converted networks compute the same is in tests/detectors/mil and tests/backbones.
"""

import json
from pathlib import Path

import flax.traverse_util
import numpy as np
import pytest
import torch

from bridge.convert import main
from bridge.weights.checkpoints import read_checkpoint
from bridge.weights.mmdet_oicr import mmdet_oicr_arrays, mmdet_oicr_back
from bridge.weights.vgg16 import vgg16_arrays
from bridge.weights.wetectron import wetectron_arrays, wetectron_back
from experiments.bench.torch_mil import CONVOLUTIONS, random_state
from weaksam_jax.boxes import decode
from weaksam_jax.detectors import load_detector, stated_detector
from weaksam_jax.engine.weights import Weights
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays

# method, pixels, rectify_last, background, pooling by (kind, whether mmdet's has a regressor)
PUBLISHED_CODE = {
    ("wetectron", False): ("mist", "mist", False, True, "max"),
    ("mmdet_oicr", False): ("oicr", "oicr", True, False, "max_exact"),
    ("mmdet_oicr", True): ("mist", "oicr", True, False, "max_exact"),
}
SMALL = {"channels": (2, 3, 4, 5, 6), "width": 7, "classes": 3}
READERS = {"wetectron": wetectron_arrays, "mmdet_oicr": mmdet_oicr_arrays}


def state_of(kind, **more):
    return random_state(kind.removesuffix("_oicr"), **SMALL, **more)


def back_of(kind, source, arrays):
    """The tensors of the published layout."""
    (tensors,) = {"wetectron": wetectron_back, "mmdet_oicr": mmdet_oicr_back}[kind](
        source, arrays
    ).values()
    return tensors


def saved(tmp_path, state):
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_layers_by_hand(tmp_path):
    state = random_state("caffe", **SMALL, side=2)
    arrays, metadata = vgg16_arrays(saved(tmp_path, state))
    assert metadata == {"backbone": "vgg16", "pixels": "bgr"}
    assert arrays["backbone/conv3_2/kernel"].shape == (3, 3, 4, 4)
    weight = state["features.12.weight"]
    assert arrays["backbone/conv3_2/kernel"][0, 2, 3, 1] == weight[1, 3, 0, 2]
    # Row 1, column 0, channel 4 of the pooled features, to output 6.
    assert (
        arrays["fc6/kernel"][(1 * 2 + 0) * 6 + 4, 6] == state["classifier.1.weight"][6, 4 * 4 + 2]
    )
    assert arrays["fc7/kernel"][2, 5] == state["classifier.4.weight"][5, 2]
    np.testing.assert_array_equal(arrays["fc7/bias"], state["classifier.4.bias"])
    assert len(arrays) == 30 and not any("classifier" in name for name in arrays)


def test_the_two_layouts_of_imagenet_are_told_apart(tmp_path):
    caffe = vgg16_arrays(saved(tmp_path, random_state("caffe", **SMALL)))
    other = vgg16_arrays(saved(tmp_path, random_state("torchvision", **SMALL)))
    assert (caffe[1]["pixels"], other[1]["pixels"]) == ("bgr", "rgb")
    assert caffe[0].keys() == other[0].keys()
    for name, value in caffe[0].items():
        np.testing.assert_array_equal(value, other[0][name])


@pytest.mark.parametrize(
    ("kind", "box"), [("wetectron", False), ("mmdet_oicr", False), ("mmdet_oicr", True)]
)
def test_there_and_back(tmp_path, kind, box):
    state = state_of(kind, box=box)
    arrays, metadata = READERS[kind](saved(tmp_path, state))
    model = json.loads(metadata.pop("config"))["model"]
    assert metadata == {"detector": "mil", "num_classes": "3"}
    assert (model["backbone"], model["pool_size"], model["fc_width"]) == ("vgg16", 7, 7)
    assert (model["evidence"], model["class_maps"]) == (0, False)
    assert model["backbone_width"] == 2
    code = ("method", "pixels", "rectify_last", "background", "pooling")
    assert tuple(model[name] for name in code) == PUBLISHED_CODE[kind, box]
    back = back_of(kind, "detector", arrays)
    unused = {name for name in state if ".model_sim." in name}
    assert len(unused) == (4 if kind == "wetectron" else 0)
    assert back.keys() == state.keys() - unused
    for name, value in back.items():
        assert torch.equal(value, state[name]), name
    # Training's own parts: a drop block is left out, class maps have no place.
    more = arrays | {"drop_block/conv1/kernel": np.zeros(1)}
    assert back_of(kind, "detector", more).keys() == back.keys()
    with pytest.raises(BadInput, match="detector: has tags/kernel"):
        back_of(kind, "detector", arrays | {"tags/kernel": np.zeros(1)})


def test_a_detector_of_the_other_kind_is_refused_on_the_way_back(tmp_path):
    mist = wetectron_arrays(saved(tmp_path, state_of("wetectron")))[0]
    with pytest.raises(BadInput, match="differs by class"):
        mmdet_oicr_back("mist", mist)
    still = {k: np.zeros_like(v) if k.startswith("deltas") else v for k, v in mist.items()}
    with pytest.raises(BadInput, match="fc_refine1"):  # 4 columns in both streams: a background
        mmdet_oicr_back("mist", still)
    oicr = mmdet_oicr_arrays(saved(tmp_path, state_of("mmdet_oicr")))[0]
    with pytest.raises(BadInput, match="ref1"):
        wetectron_back("oicr", oicr)
    del oicr["fc7/bias"]
    with pytest.raises(BadInput, match="no layer fc7"):
        mmdet_oicr_back("oicr", oicr)


def test_a_detector_without_regression_has_deltas_of_zero(tmp_path):
    state = {k: v for k, v in state_of("wetectron").items() if ".bbox_pred" not in k}
    arrays, metadata = wetectron_arrays(saved(tmp_path, state))
    assert json.loads(metadata["config"])["model"]["method"] == "oicr"
    assert arrays["deltas_2/kernel"].shape == (7, 16) and arrays["deltas_2/bias"].shape == (16,)
    assert not any(value.any() for name, value in arrays.items() if name.startswith("deltas"))


BODY, HEADS = "backbone.body.features", "roi_heads.predictor"
BROKEN = [
    ("wetectron", f"{BODY}.17.weight", None, "has no tensor"),
    ("wetectron", f"{HEADS}.ref3.bias", None, "has no tensor"),
    ("wetectron", f"{HEADS}.bbox_pred2.weight", None, "has no tensor"),
    ("wetectron", f"{HEADS}.det_score.bias", torch.zeros(3), "not \\(4,\\)"),
    ("wetectron", f"{HEADS}.bbox_pred1.weight", torch.zeros(8, 7), "not \\(16, 7\\)"),
    ("wetectron", f"{BODY}.5.weight", torch.zeros(3, 3, 3, 3), "not \\(3, 2, 3, 3\\)"),
    ("wetectron", f"{BODY}.2.weight", torch.zeros(2), "not \\(2, 2, 3, 3\\)"),
    ("wetectron", "roi_heads.feature_extractor.classifier.1.weight", torch.zeros(7, 95), "not"),
    ("wetectron", "roi_heads.strange.weight", torch.zeros(1), "unknown tensor"),
    ("mmdet_oicr", "backbone.conv5_3.bias", None, "has no tensor"),
    ("mmdet_oicr", "roi_head.bbox_head.fc_refine2.weight", torch.zeros(3, 7), "not \\(4, 7\\)"),
    ("mmdet_oicr", "roi_head.bbox_head.fc_bbox.weight", torch.zeros(16, 7), "not \\(4, 7\\)"),
    ("mmdet_oicr", "neck.weight", torch.zeros(1), "unknown tensor"),
]


@pytest.mark.parametrize(("kind", "name", "value", "problem"), BROKEN)
def test_what_does_not_fit_is_named(tmp_path, kind, name, value, problem):
    state = state_of(kind, box=kind == "mmdet_oicr")
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(BadInput, match=problem) as caught:
        READERS[kind](saved(tmp_path, state))
    assert name in str(caught.value) and "weights.pth" in str(caught.value)


def test_another_network_is_refused(tmp_path):
    path = saved(tmp_path, {"layer1.0.conv1.weight": torch.zeros(2, 3, 3, 3)})
    for read in (vgg16_arrays, *READERS.values()):
        with pytest.raises(BadInput, match="has no tensor"):
            read(path)
    normed = random_state("caffe", **SMALL) | {"features.1.running_mean": torch.zeros(2)}
    with pytest.raises(BadInput, match=r"unknown tensor features\.1\.running_mean"):
        vgg16_arrays(saved(tmp_path, normed))


@pytest.mark.parametrize(("kind", "classes"), [("wetectron", 20), ("mmdet_oicr", 80)])
def test_published_shapes_fit_the_detector(tmp_path, monkeypatch, kind, classes):
    """Of full size, as views of one number: only fc6 is ever laid out."""
    mist = kind == "wetectron"
    body = f"{BODY}." if mist else "backbone."
    shapes, before = {}, 3
    for place, name in CONVOLUTIONS:
        after = (64, 128, 256, 512, 512)[int(name[4]) - 1]
        shapes[body + (str(place) if mist else name)] = (after, before, 3, 3)
        before = after
    if mist:
        shapes["roi_heads.feature_extractor.classifier.1"] = (4096, 25088)
        shapes["roi_heads.feature_extractor.classifier.4"] = (4096, 4096)
        shapes |= {f"{HEADS}.{n}": (21, 4096) for n in ("cls_score", "det_score")}
        shapes |= {f"{HEADS}.ref{k}": (21, 4096) for k in (1, 2, 3)}
        shapes |= {f"{HEADS}.bbox_pred{k}": (84, 4096) for k in (1, 2, 3)}
        shapes |= {"roi_heads.model_sim.mlp.0": (4096, 4096)}
        shapes |= {"roi_heads.model_sim.mlp.2": (128, 4096)}
    else:
        head = "roi_head.bbox_head"
        shapes |= {f"{head}.fc1": (4096, 25088), f"{head}.fc2": (4096, 4096)}
        shapes |= {f"{head}.fc_cls{k}": (80, 4096) for k in (1, 2)}
        shapes |= {f"{head}.fc_refine{k}": (81, 4096) for k in (1, 2, 3)}
    state = {f"{name}.weight": torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    monkeypatch.setattr(f"bridge.weights.{kind}.read_checkpoint", lambda source: state)
    arrays, metadata = READERS[kind]("published")
    stated = json.loads(metadata["config"])["model"]
    assert (stated["fc_width"], stated["pool_size"]) == (4096, 7)
    assert stated["pixels"] == ("mist" if mist else "torchvision")  # 80 classes: COCO
    assert metadata["num_classes"] == str(classes)
    shapes = stated_detector(Weights(Path("published"), {}, metadata)).shapes()
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    wanted = {name: leaf.shape for name, leaf in flat.items()}
    assert {name: value.shape for name, value in arrays.items()} == wanted


def test_the_box_coder_of_wetectron_is_ours_for_boxes_a_pixel_longer():
    """As the head of `bridge.weights.wetectron` says (docs/provenance/mil.md, section 2.4)."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (50, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 60, (50, 2))], 1)
    deltas = rng.normal(0, [2, 2, 1, 1], (50, 4))
    expected = np.zeros_like(boxes)
    for row, (x1, y1, x2, y2), (dx, dy, dw, dh) in zip(expected, boxes, deltas, strict=True):
        width, height = x2 - x1 + 1, y2 - y1 + 1
        x, y = x1 + width / 2 + dx / 10 * width, y1 + height / 2 + dy / 10 * height
        w, h = np.exp(dw / 5) * width, np.exp(dh / 5) * height
        row[:] = x - w / 2, y - h / 2, x + w / 2 - 1, y + h / 2 - 1
    longer = np.array([0, 0, 1, 1])
    np.testing.assert_allclose(decode(deltas, boxes + longer) - longer, expected, atol=1e-9)
    np.testing.assert_allclose(decode(0 * deltas, boxes), boxes, atol=1e-9)
    bound = np.abs(deltas[:, :2]) / 10 + np.abs(np.exp(deltas[:, 2:] / 5) - 1) / 2
    away = np.abs(decode(deltas, boxes) - expected)
    assert (away <= np.tile(bound, 2) + 1e-9).all() and away.max() > 0.1


def test_command_line(tmp_path):
    state = state_of("wetectron")
    nested = {"model": {f"module.{k}": v for k, v in state.items()}, "iteration": 30000}
    path, arrays, back = saved(tmp_path, nested), tmp_path / "a.safetensors", tmp_path / "b.pth"
    main(["wetectron", "--from", str(path), "--to", str(arrays)])
    found, metadata = read_arrays(arrays)
    assert found["cls/kernel"].shape == (7, 4) and metadata["detector"] == "mil"
    main(["wetectron", "--from", str(arrays), "--to", str(back)])
    again = torch.load(back, weights_only=True)["model"]
    assert all(torch.equal(value, state[name]) for name, value in again.items())
    assert read_checkpoint(back).keys() == again.keys()
    with pytest.raises(BadInput, match="--from"):
        main(["vgg16", "--to", str(arrays)])
    with pytest.raises(BadInput, match="safetensors"):
        main(["vgg16", "--from", str(path), "--to", str(back)])


@pytest.mark.parametrize("kind", READERS)
def test_a_narrow_detector_is_loaded_as_it_is_stated(tmp_path, kind):
    state = random_state(kind.removesuffix("_oicr"), (2, 4, 8, 16, 16), 7, 3)
    to = tmp_path / "detector.safetensors"
    main([kind, "--from", str(saved(tmp_path, state)), "--to", str(to)])
    detector, params = load_detector(to)
    model = detector.config.model
    assert (detector.kind, detector.classes) == ("mil", 3)
    assert model.background == (kind == "wetectron") != model.rectify_last
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    for name, value in read_arrays(to)[0].items():
        np.testing.assert_array_equal(flat[name], value)

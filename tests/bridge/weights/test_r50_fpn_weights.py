"""Detector weights: real torchvision networks, detectron2's and Caffe2's names, both directions."""

import bridge.runtime.torchvision_ops  # noqa: F401

# isort: split
import json
import pickle

import jax
import numpy as np
import pytest
import torch
from small_detector import CHANNELS, CLASSES, HIDDEN, WIDTH, old_names, small_arrays
from torchvision.models import resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from bridge.weights.faster_rcnn_detectron2 import DETECTRON2
from bridge.weights.faster_rcnn_torchvision import TORCHVISION
from bridge.weights.kinds import convert
from bridge.weights.naming import conv_names
from bridge.weights.r50_fpn import to_ours, to_theirs
from bridge.weights.resnet50 import RESNET_MSRA
from weaksam_jax.detectors import load_detector
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays


def equal(found, expected, tolerance=0.0):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, err_msg=name)


def check_metadata(metadata, own):
    """A Faster R-CNN's config: `own` fields of the model, what all have, the published test."""
    assert metadata["detector"] == "faster_rcnn"
    config = json.loads(metadata["config"])
    assert config["model"] == own | {
        "strides": [4, 8, 16, 32, 64],
        "anchor_sizes": [[32], [64], [128], [256], [512]],
        "anchor_ratios": [0.5, 1, 2],
        "extra_levels": 1,
        "canonical_size": 224,
        "canonical_level": 2,
    }
    (scale,) = config["test"].pop("tta_scales")
    assert [800, 1088] in scale and [1216, 800] in scale  # 4:3 and 2:3
    assert all(min(size) == 800 and max(size) <= 1344 and not max(size) % 32 for size in scale)
    assert config["test"] == {
        "tta_flip": False,
        "pre_nms": 1000,
        "post_nms": 1000,
        "score_threshold": 0.05,
        "nms": 0.5,
        "max_detections": 100,
    }


@pytest.fixture(scope="module")
def torchvision_detector():
    return fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21)


def test_torchvisions_detector_fills_ours(torchvision_detector, tmp_path):
    theirs, path = torchvision_detector, tmp_path / "detector.pth"
    state = theirs.state_dict()
    torch.save(state, path)
    to = convert("faster_rcnn_torchvision", tmp_path / "detector.safetensors", path)
    _, metadata = read_arrays(to)
    model = {"backbone": "resnet50", "aligned": False, "round_anchors": True}
    sizes = {"backbone_width": 64, "channels": 256, "fc_width": 1024}
    check_metadata(metadata, {**model, **sizes})
    assert metadata["num_classes"] == "20" and "classes" not in metadata
    detector, params = load_detector(to)
    assert detector.class_count == 20
    count = sum(x.size for x in jax.tree.leaves(params))
    background = 4 * 1024 + 4  # its deltas
    assert count == sum(x.numel() for x in theirs.parameters()) - background
    predictor = "roi_heads.box_predictor"
    box, cls = (state[f"{predictor}.{name}.weight"] for name in ("bbox_pred", "cls_score"))
    np.testing.assert_array_equal(params["box_head"]["box"]["kernel"], box[4:].T)
    np.testing.assert_array_equal(params["box_head"]["cls"]["kernel"][:, -1], cls[0])
    np.testing.assert_array_equal(params["box_head"]["cls"]["kernel"][:, 7], cls[8])
    # (out, (channel, row, column)) there, ((row, column, channel), out) here
    fc6 = state["roi_heads.box_head.fc6.weight"]
    fc1 = np.asarray(params["box_head"]["fc1"]["kernel"]).reshape(7, 7, 256, 1024)
    np.testing.assert_array_equal(fc1[2, 5, 100], fc6[:, 100 * 49 + 2 * 7 + 5])


def test_torchvisions_published_names_and_epsilon(tmp_path):
    """The published file has the names of before 0.14."""
    arrays = small_arrays()
    old = old_names(to_theirs(arrays, TORCHVISION))
    assert "backbone.fpn.inner_blocks.3.weight" in old and "rpn.head.conv.bias" in old
    variance = "backbone.body.layer1.0.bn2.running_var"
    old[variance] = np.full_like(old[variance], 2e-5)
    torch.save({n: torch.tensor(v) for n, v in old.items()}, tmp_path / "old.pth")
    for epsilon in (0.0, 1e-5):
        to = tmp_path / f"{epsilon}.safetensors"
        found, _ = read_arrays(
            convert("faster_rcnn_torchvision", to, tmp_path / "old.pth", epsilon=epsilon)
        )
        name = "backbone/res2/block0/conv2/norm/scale"
        np.testing.assert_allclose(
            found.pop(name), arrays[name] / np.sqrt(2e-5 + epsilon), rtol=1e-5
        )
        equal(found, {n: v for n, v in arrays.items() if n != name}, 1e-4)


def test_torchvisions_detector_comes_back(torchvision_detector):
    state = {name: value.numpy() for name, value in torchvision_detector.state_dict().items()}
    back = to_theirs(to_ours(state, TORCHVISION, "test"), TORCHVISION)
    changed = {
        name for name, value in back.items() if not np.allclose(value, state[name], atol=2e-5)
    }
    missing = set(state) - set(back)
    assert len(missing) == 53 and all(name.endswith("num_batches_tracked") for name in missing)
    # Fresh norms have mean 0 and variance 1, so that little but the background's deltas changes.
    assert changed == {f"roi_heads.box_predictor.bbox_pred.{part}" for part in ("weight", "bias")}


@pytest.mark.parametrize("naming", [TORCHVISION, DETECTRON2, RESNET_MSRA])
def test_any_size_survives_the_round_trip(naming):
    arrays = small_arrays()
    if not naming.layers:
        arrays = {n[9:]: value for n, value in arrays.items() if n.startswith("backbone/")}
    equal(to_ours(to_theirs(arrays, naming), naming, "test"), arrays, 1e-6)


def test_imagenet_resnet(tmp_path):
    network = resnet50(weights=None)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight)
    torch.save(network.state_dict(), tmp_path / "r50.pth")
    to = convert("resnet50", tmp_path / "r50.safetensors", tmp_path / "r50.pth")
    arrays, metadata = read_arrays(to)
    assert metadata["backbone"] == "resnet50" and metadata["supervision"] == "tags"
    block = network.layer3[0]
    conv, norm = block.downsample
    name = "res4/block0/shortcut"
    kernel = conv.weight.detach().permute(2, 3, 1, 0)
    np.testing.assert_array_equal(arrays[f"{name}/conv/kernel"], kernel)
    x = torch.linspace(-3, 3, 1024)[None, :, None, None]
    expected = norm.eval()(x)[0, :, 0, 0].detach()
    found = x.flatten().numpy() * arrays[f"{name}/norm/scale"] + arrays[f"{name}/norm/bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert arrays["res4/block0/conv2/conv/kernel"].shape == (3, 3, 256, 256)
    assert len(arrays) == 3 * 53


# A part of each kind of file, written out by hand: Caffe2's and detectron2's names.
CAFFE = {
    "stem": ("conv1_w", "res_conv1_bn_s", "res_conv1_bn_b"),
    "res2/block0/shortcut": ("res2_0_branch1_w", "res2_0_branch1_bn_s", "res2_0_branch1_bn_b"),
    "res4/block5/conv2": ("res4_5_branch2b_w", "res4_5_branch2b_bn_s", "res4_5_branch2b_bn_b"),
}
BODY = "backbone.bottom_up."
DETECTRON2_NAMES = {
    "backbone/stem/conv/kernel": f"{BODY}stem.conv1.weight",
    "backbone/stem/norm/scale": f"{BODY}stem.conv1.norm.weight",
    "backbone/res2/block0/shortcut/conv/kernel": f"{BODY}res2.0.shortcut.weight",
    "backbone/res5/block2/conv3/norm/bias": f"{BODY}res5.2.conv3.norm.bias",
    "fpn/lateral0/kernel": "backbone.fpn_lateral2.weight",
    "fpn/output3/bias": "backbone.fpn_output5.bias",
    "rpn/objectness/kernel": "proposal_generator.rpn_head.objectness_logits.weight",
    "box_head/box/bias": "roi_heads.box_predictor.bbox_pred.bias",
}


def plain(value):
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value


def test_msras_pickle(tmp_path):
    arrays = small_arrays()
    arrays = {n[9:]: value for n, value in arrays.items() if n.startswith("backbone/")}
    blobs = to_theirs(arrays, RESNET_MSRA)
    assert len(blobs) == 3 * len(conv_names())
    for name, (kernel, scale, bias) in CAFFE.items():
        np.testing.assert_array_equal(blobs[kernel], plain(arrays[f"{name}/conv/kernel"]))
        np.testing.assert_array_equal(blobs[scale], arrays[f"{name}/norm/scale"])
        np.testing.assert_array_equal(blobs[bias], arrays[f"{name}/norm/bias"])
    # What else such files hold: the classifier, a bias that is 0, momenta.
    extra = {name: np.zeros(3, np.float32) for name in ("conv1_b", "fc1000_w", "conv1_w_momentum")}
    for content in (blobs | extra, {"blobs": blobs | extra}):
        path = tmp_path / "R-50.pkl"
        path.write_bytes(pickle.dumps(content, protocol=2))
        found, metadata = read_arrays(convert("resnet50_msra", tmp_path / "r.safetensors", path))
        equal(found, arrays)
        assert metadata["backbone"] == "resnet50_msra" and metadata["supervision"] == "tags"


@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_detectron2_checkpoints(tmp_path, ending):
    arrays = small_arrays()
    tensors = to_theirs(arrays, DETECTRON2)
    for ours, theirs in DETECTRON2_NAMES.items():
        np.testing.assert_array_equal(tensors[theirs], plain(arrays[ours]))
    fc1 = arrays["box_head/fc1/kernel"].reshape(7, 7, CHANNELS, HIDDEN)
    turned = tensors["roi_heads.box_head.fc1.weight"].reshape(HIDDEN, CHANNELS, 7, 7)
    np.testing.assert_array_equal(turned, fc1.transpose(3, 2, 0, 1))
    tensors["pixel_mean"] = np.float32([103.53, 116.28, 123.675]).reshape(3, 1, 1)
    tensors["pixel_std"] = np.ones((3, 1, 1), np.float32)
    tensors["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    path = tmp_path / f"model_final.{ending}"

    def write(tensors):
        if ending == "pkl":
            content = {"model": tensors, "__author__": "Detectron2 Model Zoo"}
            path.write_bytes(pickle.dumps(content, protocol=2))
        else:
            content = {name: torch.tensor(value) for name, value in tensors.items()}
            torch.save({"model": content, "iteration": 8999}, path)

    write(tensors)
    to = tmp_path / "detector.safetensors"
    found, metadata = read_arrays(convert("faster_rcnn_detectron2", to, path))
    equal(found, arrays, 1e-6)
    stated = {"backbone": "resnet50_msra", "aligned": True, "round_anchors": False}
    sizes = {"backbone_width": WIDTH, "channels": CHANNELS, "fc_width": HIDDEN}
    check_metadata(metadata, {**stated, **sizes})
    assert metadata["num_classes"] == str(CLASSES)
    _, params = load_detector(to)
    np.testing.assert_array_equal(params["fpn"]["output3"]["bias"], arrays["fpn/output3/bias"])
    write(tensors | {"pixel_std": np.float32([57.375, 57.12, 58.395]).reshape(3, 1, 1)})
    with pytest.raises(BadInput, match="pixel_std"):
        convert("faster_rcnn_detectron2", to, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("rpn.head.bbox_pred.bias"), r"no tensor rpn\.head\.bbox_pred\.bias"),
        (lambda t: t.pop("backbone.body.conv1.weight"), r"no tensor backbone\.body\.conv1\.weight"),
        (
            lambda t: t.update({"backbone.body.layer2.1.bn2.bias": np.zeros(1)}),
            r"layer2\.1\.bn2\.bias has the shape \(1,\), not \(4,\)",
        ),
        (
            lambda t: t.update(
                {"roi_heads.box_predictor.bbox_pred.weight": np.zeros((16, HIDDEN))}
            ),
            r"bbox_pred\.weight has the shape \(16, 5\), not \(20, 5\)",
        ),
        (lambda t: t.update({"rpn.head.cls_logits.weight": np.zeros(3)}), "not 4 dimensions"),
        (
            lambda t: t.update({"roi_heads.mask_head.mask_fcn1.weight": np.zeros(1)}),
            r"1 unknown tensors, the first is roi_heads\.mask_head\.mask_fcn1",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message):
    tensors = to_theirs(small_arrays(), TORCHVISION)
    change(tensors)
    with pytest.raises(BadInput, match=message):
        to_ours(tensors, TORCHVISION, "some.pth")


class Touch:
    """Unpickling this would call print."""

    def __reduce__(self):
        return print, ("run",)


def test_pickles_run_nothing(tmp_path, capsys):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": Touch()}))
    for kind in ("resnet50_msra", "faster_rcnn_detectron2"):
        with pytest.raises(BadInput, match=r"R-50\.pkl"):
            convert(kind, tmp_path / "x.safetensors", path)
        with pytest.raises(BadInput, match=r"R-51\.pkl: does not exist"):
            convert(kind, tmp_path / "x.safetensors", tmp_path / "R-51.pkl")
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(BadInput, match="no named tensors"):
        convert("resnet50_msra", tmp_path / "x.safetensors", path)
    assert capsys.readouterr().out == "" and not list(tmp_path.glob("*.safetensors"))

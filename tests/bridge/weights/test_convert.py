"""`python -m bridge.convert` of detectors: what their files state, and what ends in one line."""

import bridge.runtime.torchvision_ops

# isort: split
import inspect
import json
import pickle

import numpy as np
import pytest
import torch
from small_detector import CLASSES, old_names, small_arrays
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

import bridge.convert
from bridge.weights.faster_rcnn_detectron2 import DETECTRON2
from bridge.weights.faster_rcnn_torchvision import TORCHVISION
from bridge.weights.r50_fpn import BATCH_NORM_EPSILON, to_theirs
from weaksam_jax.cli import entry_point
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays, write_arrays

STEM = {
    "resnet50_msra": "conv1_w",
    "faster_rcnn_detectron2": "backbone.bottom_up.stem.conv1.weight",
}


@pytest.mark.parametrize("kind", STEM)
@pytest.mark.parametrize(
    "value", [np.array(["a", "b"]), np.array([[1], None], object), "text", [[1.0], [2.0, 3.0]]]
)
def test_what_is_no_array_of_numbers_ends_in_one_line(tmp_path, capsys, kind, value):
    path = tmp_path / "weights.pkl"
    command = [kind, "--from", str(path), "--to", str(tmp_path / "x.safetensors")]
    contents = {STEM[kind]: {STEM[kind]: value}, "named": {7: value}}
    if kind == "faster_rcnn_detectron2":
        contents["pixel_mean"] = {"pixel_mean": value}
    for name, content in contents.items():
        path.write_bytes(pickle.dumps({"model": content, "blobs": content}, protocol=2))
        assert entry_point(bridge.convert.main, command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        refused = isinstance(value, np.ndarray)  # its dtype is none of numbers
        told = "it asks for the dtype" if refused else name
        assert line.startswith(f"error: {path}: ") and told in line


def frozen_norm(tensors, name, epsilon):
    """Scale and bias of torchvision's frozen norm, from its values at 0 and 1."""
    count = tensors[f"{name}.bias"].shape[0]
    norm = FrozenBatchNorm2d(count, eps=epsilon)
    state = {key: torch.tensor(tensors[f"{name}.{key}"]) for key in norm.state_dict()}
    norm.load_state_dict(state)
    low, high = (norm(torch.full((1, count, 1, 1), x))[0, :, 0, 0].numpy() for x in (0.0, 1.0))
    return high - low, low


@pytest.mark.parametrize(
    ("classes", "old", "flag", "epsilon"),
    [
        (90, True, (), 0.0),  # the published file
        (90, False, (), 1e-5),
        (CLASSES, True, (), 1e-5),
        (CLASSES, False, (), 1e-5),
        (CLASSES, False, ("--epsilon", "0"), 0.0),
        (90, True, ("--epsilon", "1e-5"), 1e-5),
    ],
)
def test_epsilon_of_torchvisions_norms(tmp_path, classes, old, flag, epsilon):
    tensors = to_theirs(small_arrays(classes), TORCHVISION)
    name = "backbone.body.layer1.0.bn2"
    for part, value in (("running_var", 2e-5), ("running_mean", 3e-3)):
        tensors[f"{name}.{part}"] = np.full_like(tensors[f"{name}.{part}"], value)
    named = old_names(tensors) if old else tensors
    torch.save({n: torch.tensor(v) for n, v in named.items()}, tmp_path / "d.pth")
    to = tmp_path / "d.safetensors"
    command = ["faster_rcnn_torchvision", "--from", str(tmp_path / "d.pth"), "--to", str(to)]
    bridge.convert.main([*command, *flag])
    found, _ = read_arrays(to)
    scale, bias = frozen_norm(tensors, name, epsilon)
    np.testing.assert_allclose(found["backbone/res2/block0/conv2/norm/scale"], scale, rtol=1e-4)
    np.testing.assert_allclose(found["backbone/res2/block0/conv2/norm/bias"], bias, rtol=1e-4)


def test_published_detectors_are_run_with_the_epsilon_of_the_rule():
    """torchvision sets the norms of its published COCO detector to 0, and leaves others at 1e-5."""
    source = inspect.getsource(fasterrcnn_resnet50_fpn)
    assert "if weights == FasterRCNN_ResNet50_FPN_Weights.COCO_V1" in source
    assert "overwrite_eps(model, 0.0)" in source
    assert FrozenBatchNorm2d(1).eps == torch.nn.BatchNorm2d(1).eps == BATCH_NORM_EPSILON


def test_names_of_the_classes(tmp_path):
    """COCO's where torchvision has 91 outputs; else those that are given, or their number."""
    path, to = tmp_path / "d.pth", tmp_path / "d.safetensors"

    def classes(count, *names, naming=TORCHVISION, library="torchvision"):
        tensors = to_theirs(small_arrays(count), naming)
        torch.save({n: torch.tensor(v) for n, v in tensors.items()}, path)
        flags = ("--classes", ",".join(names)) if names else ()
        command = [f"faster_rcnn_{library}", "--from", str(path), "--to", str(to), *flags]
        bridge.convert.main(command)
        metadata = read_arrays(to)[1]
        return json.loads(metadata.get("classes") or metadata["num_classes"])

    coco = classes(90)
    assert len(coco) == 90 and (coco[0], coco[11], coco[89]) == ("person", "N/A", "toothbrush")
    own = [f"class {i}" for i in range(90)]
    assert classes(90, *own) == own
    assert classes(2, "cat", "dog", naming=DETECTRON2, library="detectron2") == ["cat", "dog"]
    assert classes(80, naming=DETECTRON2, library="detectron2") == 80
    with pytest.raises(BadInput, match=r"d\.pth: has 2 classes without background, not the 3"):
        classes(2, "background", "cat", "dog")


def test_options_of_other_networks_are_refused(tmp_path):
    command = ["resnet50", "--from", str(tmp_path / "r.pth"), "--to", "r.safetensors"]
    for flag in (("--epsilon", "0"), ("--classes", "cat")):
        with pytest.raises(BadInput, match=f"{flag[0]}: is no option of resnet50"):
            bridge.convert.main([*command, *flag])


@pytest.mark.parametrize(
    ("library", "naming", "key"),
    [("torchvision", TORCHVISION, None), ("detectron2", DETECTRON2, "model")],
)
def test_a_detector_goes_back(tmp_path, capsys, library, naming, key):
    kind, tensors = f"faster_rcnn_{library}", to_theirs(small_arrays(), naming)
    first, arrays, back = (tmp_path / name for name in ("a.pth", "a.safetensors", "b.pth"))
    torch.save({name: torch.tensor(value) for name, value in tensors.items()}, first)
    bridge.convert.main([kind, "--from", str(first), "--to", str(arrays)])
    bridge.convert.main([kind, "--from", str(arrays), "--to", str(back)])
    found = torch.load(back, weights_only=True)
    found = found if key is None else found[key]
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    own, metadata = read_arrays(arrays)
    for change, told in (
        ({"mask_head/kernel": np.zeros(1, np.float32)}, "has mask_head/kernel, for which"),
        ({"rpn/conv/bias": None}, "is no Faster R-CNN R50-FPN"),
    ):
        changed = {name: value for name, value in {**own, **change}.items() if value is not None}
        write_arrays(arrays, changed, metadata)
        assert (
            entry_point(bridge.convert.main, [kind, "--from", str(arrays), "--to", str(back)]) == 2
        )
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {arrays}: {told}")
    with pytest.raises(BadInput, match="--classes: is no option of the way back"):
        bridge.convert.main([kind, "--from", "a", "--to", "b.pth", "--classes", "cat"])
    with pytest.raises(BadInput, match="--from: is missing"):
        bridge.convert.main([kind, "--to", "b.pth"])

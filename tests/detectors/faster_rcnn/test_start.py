"""What Faster R-CNN starts from: what a file must state and hold before the detector takes it."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from configs import vary
from tiny_pipeline import options

from experiments.pipeline.graph import run_pipeline
from weaksam_jax.backbones import BACKBONES
from weaksam_jax.detectors import read_weights, save_detector
from weaksam_jax.detectors.faster_rcnn import FasterRcnn, FasterRcnnConfig
from weaksam_jax.detectors.faster_rcnn.recipes import light, voc07
from weaksam_jax.detectors.mil import MilConfig, MilDetector
from weaksam_jax.engine.weights import flatten, save_params, unflatten
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_json

WIDTH = 2
NARROW = {"backbone_width": WIDTH, "channels": 4, "fc_width": 6}
CLASSES = ("cat", "dog")
BATCH = {"image": np.zeros((1, 64, 64, 3), np.uint8)}


def levels_of(backbone):
    """The model's levels over a backbone, one more than it gives."""
    own = BACKBONES[backbone].strides
    strides = (*own, 2 * own[-1])
    return {"strides": strides, "anchor_sizes": tuple((8 * side,) for side in strides)}


def detector_over(backbone, **parts):
    own = {"backbone": backbone, **NARROW, **levels_of(backbone)}
    parts["model"] = own | parts.get("model", {})
    return FasterRcnn(vary(voc07(), **parts), CLASSES)


def ones(shapes):
    return jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{backbone: a file of its ImageNet weights}, narrow ones."""
    folder, made = tmp_path_factory.mktemp("weights"), {}
    for name in ("resnet50", "resnet50_msra"):
        network, image = BACKBONES[name].pyramid(width=WIDTH), np.zeros((1, 64, 64, 3), np.float32)
        shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
        made[name] = folder / f"{name}.safetensors"
        save_params(made[name], ones(shapes), {"backbone": name, "supervision": "tags"})
    return made


def start(detector, path):
    """Parameters (shapes where the file gives nothing), names joined by "/"."""
    return flatten(detector.start(detector.shapes(), read_weights(path)))


def given(found):
    """Names of the arrays that a file gave."""
    return {name for name, x in found.items() if not isinstance(x, jax.ShapeDtypeStruct)}


def test_imagenet_weights_of_the_backbone_are_taken(files):
    for name, path in files.items():
        found = start(detector_over(name), path)
        assert given(found) == {one for one in found if one.startswith("backbone/")}
        for one, value in read_weights(path).arrays.items():
            np.testing.assert_array_equal(found[f"backbone/{one}"], value)


def test_init_has_fresh_weights_where_the_file_has_none(tmp_path):
    detector, key = detector_over("mini_cnn"), jax.random.key(0)
    path = tmp_path / "mini.safetensors"
    save_params(path, ones(detector.shapes()["backbone"]), {"backbone": "mini_cnn"})
    found = flatten(detector.init(key, BATCH, read_weights(path)))
    other = flatten(detector.init(key, BATCH))
    assert set(found) == set(other)
    for name, value in found.items():
        expected = np.ones(value.shape) if name.startswith("backbone/") else other[name]
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("backbone", "other"),
    [("resnet50_msra", "resnet50"), ("resnet50", "resnet50_msra"), ("lite0", "resnet50")],
)
def test_weights_of_another_backbone_are_refused(files, backbone, other):
    """Both ResNets have the same names and shapes: only the file's own word tells them apart."""
    with pytest.raises(BadInput) as caught:
        start(detector_over(backbone), files[other])
    error = caught.value
    assert error.path == str(files[other])
    assert error.problem == f"holds weights of {other}, not of {backbone}"
    assert f"set model.backbone to {other}" in error.hint


def test_another_backbone_is_noticed_before_the_first_stage(files, tmp_path):
    named = {"data": "mini", "out": tmp_path / "run", "preset": "mini"}
    named |= {"retrain.optim.init": files["resnet50"]}
    flags = [text for name, value in named.items() for text in (f"--{name}", str(value))]
    model = {"backbone": "resnet50_msra", "extra_levels": 1, **levels_of("resnet50_msra")}
    path = tmp_path / "c.json"
    write_json(path, {"settings": {"retrain": {"model": model}}})
    flags += ["--config", str(path)]
    with pytest.raises(BadInput, match="holds weights of resnet50, not of resnet50_msra"):
        run_pipeline(options(*flags))
    assert not (tmp_path / "run").exists()


def test_weights_of_another_shape_are_refused_with_their_file(files, tmp_path):
    arrays, metadata = read_weights(files["resnet50_msra"]).arrays, {"backbone": "resnet50_msra"}
    path = tmp_path / "bad.safetensors"
    detector = detector_over("resnet50_msra")
    name = "backbone/stem/norm/bias"
    save_params(
        path, unflatten({k: x for k, x in arrays.items() if k != "stem/norm/bias"}), metadata
    )
    with pytest.raises(BadInput, match=rf"bad\.safetensors: has no tensor {name}"):
        start(detector, path)
    save_params(path, unflatten(arrays | {"stem/norm/bias": np.ones(3)}), metadata)
    problem = rf"bad\.safetensors: {name} has the shape \[3\], not \[2\]"
    with pytest.raises(BadInput, match=problem):
        start(detector, path)
    with pytest.raises(BadInput, match=r"gone\.safetensors: does not exist; check the path"):
        start(detector, tmp_path / "gone.safetensors")


def test_a_published_backbone_needs_weights_or_the_word_scratch():
    detector = FasterRcnn(light(), CLASSES)
    shapes = detector.shapes()
    with pytest.raises(BadInput) as caught:
        detector.start(shapes, None)
    assert "has no weights for its backbone lite0" in caught.value.problem
    assert 'optim.init to a file of bridge.convert, or to "scratch"' in caught.value.hint
    scratch = FasterRcnn(vary(light(), optim={"init": "scratch"}), CLASSES)
    own = FasterRcnn(FasterRcnnConfig(), CLASSES)  # of a backbone that is always trained anew
    for one in (scratch, own):
        shapes = one.shapes()
        assert one.start(shapes, None) is shapes


@pytest.mark.parametrize(
    ("backbone", "shared"),
    [("mini_cnn", "backbone/stem/"), ("resnet50", "backbone/"), ("lite0", "backbone/")],
)
def test_the_mil_detectors_backbone_is_taken(backbone, shared, tmp_path):
    width = None if backbone == "lite0" else WIDTH
    model = {"backbone": backbone, "backbone_width": width}
    mil = MilDetector(vary(MilConfig(), model=model), CLASSES)
    path = tmp_path / "mil.safetensors"
    save_detector(path, mil, ones(mil.shapes()))
    found = start(detector_over(backbone, model=model), path)
    assert given(found) == {name for name in found if name.startswith(shared)}
    assert all((found[name] == 1).all() for name in given(found))
    other = detector_over("resnet50_msra")
    with pytest.raises(BadInput, match=f"is a detector over {backbone}, not resnet50_msra"):
        start(other, path)


def test_a_whole_detector_is_taken_when_it_was_trained_as_this_one(tmp_path):
    """What shapes do not tell, a detector's file does."""
    path = tmp_path / "d.safetensors"
    trained = detector_over("resnet50", model={"aligned": False, "round_anchors": True})
    save_detector(path, trained, ones(trained.shapes()))
    found = start(trained, path)
    assert given(found) == set(found) and all((value == 1).all() for value in found.values())
    for name, own in (("aligned", True), ("round_anchors", False), ("backbone", "resnet50_msra")):
        model = replace(trained.config.model, **{name: own})
        other = FasterRcnn(replace(trained.config, model=model), CLASSES)
        with pytest.raises(BadInput) as caught:
            start(other, path)
        was = getattr(trained.config.model, name)
        assert caught.value.problem == f"was trained with model.{name} {was}, not {own}"
        assert caught.value.hint == f"set model.{name} to {was}"
    fewer = FasterRcnn(trained.config, 1)
    with pytest.raises(BadInput, match=r"box_head/box/bias has the shape \[8\], not \[4\]"):
        start(fewer, path)

"""What every detector offers: a file that is whole, predictions, frozen parameters, a start."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from configs import vary

from weaksam_jax.backbones import BACKBONES
from weaksam_jax.data.records import TagSplit
from weaksam_jax.detectors import (
    DETECTORS,
    RETRAINERS,
    load_detector,
    metadata_of,
    read_weights,
    save_detector,
)
from weaksam_jax.detectors.dino import Dino
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.predict import UNUSED, with_classes
from weaksam_jax.engine.step import create_state, make_train_step
from weaksam_jax.engine.train import frozen_loss
from weaksam_jax.engine.weights import flatten, save_params
from weaksam_jax.errors import BadInput
from weaksam_jax.settings import to_plain

NAMES, SIDE, BOXES, IMAGES = ("cat", "dog", "sofa"), 64, 12, 2
SMALL = {
    "mil": vary(
        MilDetector.Config(),
        model={"fc_width": 8, "pool_size": 3, "dropout": 0.0},
        optim={"batch_size": IMAGES, "warmup": 0},
        test={"max_detections": 7},
    ),
    "faster_rcnn": vary(
        FasterRcnn.Config(),
        model={"channels": 8, "fc_width": 8},
        loss={"rpn_batch": 16, "pre_nms": 20, "post_nms": 10, "roi_batch": 8},
        optim={"batch_size": IMAGES, "warmup": 0},
        test={"max_detections": 7, "pre_nms": 20, "post_nms": 10, "score_threshold": 0.0},
    ),
    "dino": vary(
        Dino.Config(),
        model={"channels": 8, "heads": 2, "ffn_width": 8, "queries": 20},
        optim={"batch_size": IMAGES, "warmup": 0},
        test={"max_detections": 7},
    ),
}
every_kind = pytest.mark.parametrize("kind", DETECTORS)
every_retrainer = pytest.mark.parametrize("kind", RETRAINERS)


def detector_of(kind, classes=NAMES, **parts):
    return DETECTORS[kind](vary(SMALL[kind], **parts), classes)


def batch_of(seed=0, classes=3):
    """Two images, one of which does not fill its padded size, with boxes for every detector."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 25, (IMAGES, BOXES, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 25, (IMAGES, BOXES, 2))], -1)
    images = rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3)).astype(np.uint8)
    images[1, 48:], images[1, :, 56:] = 0, 0
    return {
        "image": images,
        "size": np.float32([[SIDE, SIDE], [48, 56]]),
        "boxes": boxes.astype(np.float32),
        "valid": np.arange(BOXES)[None] < [[BOXES], [BOXES - 3]],
        "labels": rng.integers(0, len(NAMES), (IMAGES, BOXES)).astype(np.int32),
        "prior": rng.uniform(size=(IMAGES, BOXES, classes)).astype(np.float32),
        "tags": np.array([[True, False, True], [False, True, False]]),
    }


def seen_at_test(batch, kind):
    """`image` and `size`, and the proposals of the MIL detector: no truth."""
    names = ("image", "size", *(("boxes", "valid", "prior") if kind == "mil" else ()))
    return {name: batch[name] for name in names}


@functools.cache
def params_of(kind):
    """Parameters of the small detector, large enough that its outputs differ."""
    rng = np.random.default_rng(1)
    fresh = detector_of(kind).init(jax.random.key(0), batch_of())
    return jax.tree.map(lambda x: x + rng.normal(0, 0.05, x.shape).astype(np.float32), fresh)


def same(one, other):
    one, other = flatten(one), flatten(other)
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@every_kind
@pytest.mark.parametrize("classes", [NAMES, len(NAMES)], ids=["names", "number"])
def test_a_saved_detector_comes_back(tmp_path, kind, classes):
    detector, path = detector_of(kind, classes), tmp_path / "detector.safetensors"
    save_detector(path, detector, params_of(kind))
    again, params = load_detector(path)
    assert again == detector and hash(again) == hash(detector) and type(again) is DETECTORS[kind]
    assert again.classes == classes and again.class_count == len(NAMES)
    assert same(params, params_of(kind))
    assert all(x.dtype == y.dtype for x, y in zip(
        jax.tree.leaves(params), jax.tree.leaves(params_of(kind)), strict=True
    ))  # fmt: skip
    metadata = read_weights(path).metadata
    assert metadata["detector"] == kind == detector.kind
    assert json.loads(metadata["config"]) == to_plain(detector.config)
    assert ("classes" in metadata) != ("num_classes" in metadata)


@every_kind
def test_a_file_may_state_a_part_of_its_config(tmp_path, kind):
    """As those of `bridge.convert`: what is missing has the default of the config."""
    model, usual = to_plain(SMALL[kind].model), to_plain(DETECTORS[kind].Config().model)
    stated = {"model": {k: model[k] for k in model if model[k] != usual[k]}}
    metadata = {"detector": kind, "config": json.dumps(stated), "num_classes": "3"}
    save_params(tmp_path / "converted.safetensors", params_of(kind), metadata)
    detector, params = load_detector(tmp_path / "converted.safetensors")
    assert detector.config == vary(DETECTORS[kind].Config(), model=stated["model"])
    assert detector.classes == 3 and same(params, params_of(kind))


def drop(metadata, *names):
    return {name: value for name, value in metadata.items() if name not in names}


@every_kind
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: drop(m, "detector"), "is no file of a detector; give a file of training"),
        (lambda m: m | {"detector": "yolo"}, "is no file of a detector"),
        (lambda m: {"backbone": "vgg16"}, "is no file of a detector"),
        (lambda m: drop(m, "classes"), r"\(metadata classes\): is empty"),
        (lambda m: m | {"classes": "cat, dog"}, r"\(metadata classes\): is not JSON"),
        (lambda m: m | {"config": "{"}, r"\(metadata config\): is not JSON"),
        (lambda m: m | {"config": '{"model": {"fc_widht": 3}}'}, "model.fc_widht is unknown"),
        (lambda m: m | {"config": '{"model": {"precision": "int8"}}'}, "model.precision is 'int8'"),
        (lambda m: m | {"classes": '["cat"]'}, "has the shape"),
    ],
)
def test_metadata_that_say_nothing_are_refused(tmp_path, kind, change, message):
    path = tmp_path / "detector.safetensors"
    save_params(path, params_of(kind), change(metadata_of(detector_of(kind))))
    with pytest.raises(BadInput, match=message) as caught:
        load_detector(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@every_kind
def test_arrays_that_are_not_as_stated_are_refused(tmp_path, kind):
    detector, path = detector_of(kind), tmp_path / "detector.safetensors"
    params = params_of(kind)
    part = {"mil": "fc6", "faster_rcnn": "box_head", "dino": "memory_fc"}[kind]
    cases = [
        ({k: v for k, v in params.items() if k != part}, rf"has no tensor {part}/"),
        ({**params, "extra": {"kernel": np.zeros(2)}}, "has an unknown tensor extra/kernel"),
        (jax.tree.map(lambda x: x[..., :1], params), r"has the shape \[.*\], not \[.*\]"),
    ]
    for arrays, message in cases:
        save_params(path, arrays, metadata_of(detector))
        with pytest.raises(BadInput, match=message) as caught:
            load_detector(path)
        assert caught.value.path == str(path)
    with pytest.raises(BadInput, match="does not exist"):
        load_detector(tmp_path / "gone.safetensors")


def test_a_mil_detector_of_evidence_needs_its_class_maps(tmp_path):
    """Training may start without them, but their scores are part of what is detected."""
    path = tmp_path / "detector.safetensors"
    params = {name: one for name, one in params_of("mil").items() if name != "tags"}
    save_params(path, params, metadata_of(detector_of("mil")))
    with pytest.raises(BadInput, match="has no tensor tags/"):
        load_detector(path)
    published = detector_of("mil", model={"class_maps": False, "evidence": 0.0})
    save_params(path, params, metadata_of(published))
    detector, loaded = load_detector(path)
    assert detector == published and same(loaded, params)


@pytest.mark.parametrize("model", [{"class_maps": False}, {"pool_size": 2}], ids=str)
def test_evidence_that_there_is_none_of_is_refused(model):
    with pytest.raises(BadInput, match=r"model\.evidence needs class_maps.*set it to 0"):
        detector_of("mil", model=model)
    assert detector_of("mil", model={**model, "evidence": 0.0}).class_count == 3


@every_kind
def test_predictions_are_padded_sorted_and_inside_the_image(kind):
    detector, batch = detector_of(kind), seen_at_test(batch_of(), kind)
    found = jax.device_get(jax.jit(detector.predict)(params_of(kind), batch))
    assert found.boxes.shape == (IMAGES, 7, 4) and found.boxes.dtype == np.float32
    assert found.scores.shape == found.labels.shape == found.valid.shape == (IMAGES, 7)
    assert found.scores.dtype == np.float32 and found.valid.dtype == bool
    assert np.issubdtype(found.labels.dtype, np.integer) and found.masks is None
    assert found.valid.any(1).all()
    for image, (height, width) in enumerate(batch["size"]):
        valid = found.valid[image]
        boxes, scores = found.boxes[image][valid], found.scores[image][valid]
        assert (np.diff(scores) <= 0).all() and (scores > 0).all() and (scores <= 1).all()
        assert set(found.labels[image][valid]) <= set(range(len(NAMES)))
        assert (boxes >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, [0, 2]] <= width).all() and (boxes[:, [1, 3]] <= height).all()


@every_kind
def test_detectors_are_static_arguments_that_hit_the_cache(kind):
    """Equal detectors are one program, others are not."""
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(detector, params, batch):
        traced.append(detector)
        return detector.predict(params, batch).scores

    batch = seen_at_test(batch_of(), kind)
    first = run(detector_of(kind), params_of(kind), batch)
    np.testing.assert_array_equal(run(detector_of(kind), params_of(kind), batch), first)
    assert len(traced) == 1
    few = run(detector_of(kind, test={"max_detections": 3}), params_of(kind), batch)
    assert few.shape == (IMAGES, 3) and len(traced) == 2
    np.testing.assert_array_equal(few[:, 0], first[:, 0])


@every_kind
def test_one_view_of_the_predictor_is_predict(kind):
    """In pixels of the original image, here as large as what is shown."""
    detector, batch = detector_of(kind), seen_at_test(batch_of(), kind)
    view = batch | {"original": batch["size"], "flipped": np.zeros(IMAGES, bool)}
    if kind == "mil":
        view["clue_factor"] = np.ones((IMAGES, BOXES, len(NAMES)), np.float32)
    merged = detector.predictor(params_of(kind))([view])
    found = jax.device_get(jax.jit(detector.predict)(params_of(kind), batch))
    assert len(merged) == IMAGES
    for image, one in enumerate(merged):
        valid = found.valid[image]
        np.testing.assert_allclose(one.boxes, found.boxes[image][valid], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(one.scores, found.scores[image][valid], rtol=1e-5)
        np.testing.assert_array_equal(one.labels, found.labels[image][valid])


@every_kind
@pytest.mark.parametrize("frozen", [(), ("*",)], ids=["free", "frozen"])
def test_frozen_parameters_do_not_move(kind, frozen):
    """A step with a large decay of weights, which moves what has no gradient too."""
    decay = {"weight_decay": 0.5, "lr": 0.01, "optimizer": "adamw"}
    detector = detector_of(kind, optim={"frozen": frozen, **decay})
    mesh, tx = data_mesh(jax.devices()[:1]), detector.optimizer()
    state = create_state(params_of(kind), tx, jax.random.key(0), mesh)
    step = make_train_step(frozen_loss(detector), tx, mesh)
    batch = batch_of()
    if kind == "mil":
        del batch["labels"]
    else:
        del batch["prior"], batch["tags"]
    after, metrics = step(state, {name: jnp.asarray(value) for name, value in batch.items()})
    assert np.isfinite(float(metrics["loss"]))
    before, after = flatten(params_of(kind)), flatten(jax.device_get(after.params))
    for name in before:
        still = bool(frozen) and name.startswith("backbone/")
        assert detector.frozen(name.split("/")) == still
        assert np.array_equal(before[name], after[name]) == still, name


@every_kind
def test_shapes_are_those_of_init(kind):
    fresh = detector_of(kind).init(jax.random.key(3), batch_of())
    own = flatten(detector_of(kind).shapes())
    assert {k: (v.shape, v.dtype) for k, v in flatten(fresh).items()} == {
        k: (v.shape, v.dtype) for k, v in own.items()
    }
    other = detector_of(kind).init(jax.random.key(4), batch_of())
    assert not same(fresh, other)


def write_mil(path, **parts):
    """A file of a MIL detector with these parts of its config; its parameters."""
    detector = detector_of("mil", **parts)
    params = params_of("mil")
    if parts:
        params = detector.init(jax.random.key(7), batch_of())
    save_detector(path, detector, params)
    return jax.device_get(params)


@every_kind
def test_training_starts_from_a_detector_of_its_kind(tmp_path, kind):
    path = tmp_path / "detector.safetensors"
    save_detector(path, detector_of(kind), params_of(kind))
    start = detector_of(kind).init(jax.random.key(9), batch_of(), read_weights(path))
    assert same(start, params_of(kind))
    for classes in (2, 4):
        with pytest.raises(BadInput, match="has the shape"):
            batch = batch_of(classes=classes)
            detector_of(kind, classes).init(jax.random.key(9), batch, read_weights(path))


@every_retrainer
def test_a_retrainer_starts_from_the_backbone_of_the_mil_detector(tmp_path, kind):
    kept = write_mil(tmp_path / "mil.safetensors")["backbone"]
    weights = read_weights(tmp_path / "mil.safetensors")
    start = detector_of(kind).init(jax.random.key(0), batch_of(), weights)
    fresh = detector_of(kind).init(jax.random.key(0), batch_of())
    shared = BACKBONES["mini_cnn"].shared
    assert same(start["backbone"][shared], kept) and not same(start["backbone"], fresh["backbone"])
    rest = {name: one for name, one in start.items() if name != "backbone"}
    assert same(rest, {name: one for name, one in fresh.items() if name != "backbone"})
    others = {k: v for k, v in start["backbone"].items() if k != shared}
    assert same(others, {k: v for k, v in fresh["backbone"].items() if k != shared})


def test_the_backbone_of_another_detector_must_be_the_same(tmp_path):
    write_mil(tmp_path / "mil.safetensors")
    weights = read_weights(tmp_path / "mil.safetensors")
    levels = {"strides": (4, 8, 16, 32), "anchor_sizes": ((16,), (32,), (56,), (96,))}
    model = {"backbone": "resnet50", "backbone_width": 2, **levels}
    other = detector_of("faster_rcnn", model=model)
    with pytest.raises(BadInput, match="is a detector over mini_cnn, not resnet50"):
        other.init(jax.random.key(0), batch_of(), weights)


def test_a_mil_detector_starts_from_the_backbone_of_a_retrainer(tmp_path):
    path = tmp_path / "retrained.safetensors"
    save_detector(path, detector_of("faster_rcnn"), params_of("faster_rcnn"))
    start = detector_of("mil").init(jax.random.key(0), batch_of(), read_weights(path))
    shared = BACKBONES["mini_cnn"].shared
    assert same(start["backbone"], params_of("faster_rcnn")["backbone"][shared])


def test_lite0_goes_from_the_mil_detector_to_a_retrainer_and_not_back(tmp_path):
    """The MIL detector has the head of Lite0 beside what both have."""
    wanted = {"model": {"backbone": "lite0"}, "optim": {"init": "scratch"}}
    mil, retrainer = (detector_of(kind, **wanted) for kind in ("mil", "faster_rcnn"))
    given = jax.device_get(mil.init(jax.random.key(1), batch_of()))
    save_detector(tmp_path / "mil.safetensors", mil, given)
    weights = read_weights(tmp_path / "mil.safetensors")
    start = jax.device_get(retrainer.init(jax.random.key(2), batch_of(), weights))
    assert "head" not in start["backbone"] and "stem" in start["backbone"]
    assert same(start["backbone"], {k: v for k, v in given["backbone"].items() if k != "head"})
    save_detector(tmp_path / "retrained.safetensors", retrainer, start)
    with pytest.raises(BadInput, match="has no tensor head/"):
        mil.init(jax.random.key(2), batch_of(), read_weights(tmp_path / "retrained.safetensors"))


@pytest.mark.parametrize("kind", ["mil", "faster_rcnn"])
def test_imagenet_weights_give_the_backbone_and_leave_the_rest(tmp_path, kind):
    """A file of Lite0 has no prefix, and a head that Faster R-CNN has no place for."""
    detector = detector_of(kind, model={"backbone": "lite0"}, optim={"init": "scratch"})
    fresh = jax.device_get(detector.init(jax.random.key(1), batch_of()))
    whole = detector_of("mil", model={"backbone": "lite0"}, optim={"init": "scratch"})
    published = jax.device_get(whole.init(jax.random.key(8), batch_of()))["backbone"]
    path = tmp_path / "lite0.safetensors"
    save_params(path, published, {"backbone": "lite0"})
    start = jax.device_get(detector.init(jax.random.key(1), batch_of(), read_weights(path)))
    for name, value in flatten(start).items():
        if name.startswith("backbone/"):
            want = flatten(published)[name.removeprefix("backbone/")]
        else:
            want = flatten(fresh)[name]
        np.testing.assert_array_equal(value, want)
    missing = {k: v for k, v in published.items() if k != "block3"}
    save_params(path, missing, {"backbone": "lite0"})
    with pytest.raises(BadInput, match="has no tensor backbone/block3/"):
        detector.init(jax.random.key(1), batch_of(), read_weights(path))
    save_params(path, published, {"backbone": "resnet50"})
    with pytest.raises(BadInput, match="holds weights of resnet50, not of lite0"):
        detector.init(jax.random.key(1), batch_of(), read_weights(path))


def test_a_split_gets_the_classes_of_the_detector():
    split = TagSplit("custom", "test", ("dog", "cat"), (4, 9), ())
    told = with_classes(split, ("cat", "unicorn", "dog"), "weights.safetensors")
    assert told.classes == ("cat", "unicorn", "dog") and told.category_ids == (9, UNUSED, 4)
    assert with_classes(split, 2, "weights.safetensors") is split
    with pytest.raises(BadInput, match=r"weights\.safetensors: has 3 classes, custom has 2"):
        with_classes(split, 3, "weights.safetensors")
    with pytest.raises(BadInput, match=r"weights\.safetensors: does not know dog"):
        with_classes(split, ("cat", "cow"), "weights.safetensors")


def test_the_step_of_an_optimizer_is_that_of_its_config():
    """`detector.optimizer()` has the schedule of `config.optim`."""
    detector = detector_of(
        "faster_rcnn", optim={"optimizer": "sgd", "weight_decay": 0.0, "lr": 0.5}
    )
    tx, params = detector.optimizer(), params_of("faster_rcnn")
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    for name, before in flatten(params).items():
        np.testing.assert_allclose(flatten(moved)[name], before - 0.5, rtol=1e-5, atol=1e-6)

"""The MIL detector: shapes, independence of images, boxes and padding, tag logits by a loop; the
published networks against plain PyTorch."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bridge.weights.mmdet_oicr import mmdet_oicr_arrays
from bridge.weights.wetectron import wetectron_arrays
from experiments.bench import torch_mil as plain_mil
from weaksam_jax.backbones.mini_cnn import MiniCnn
from weaksam_jax.backbones.vgg16 import Vgg16
from weaksam_jax.boxes import decode
from weaksam_jax.detectors import load_detector
from weaksam_jax.detectors.mil.loss import wsddn_scores
from weaksam_jax.detectors.mil.model import MilNetwork, class_evidence
from weaksam_jax.engine.weights import unflatten
from weaksam_jax.files import write_arrays
from weaksam_jax.ops.roi import roi_align, roi_pool

C, N = 3, 6


def detector(pooling, neck=None, backbone=True):
    pool = functools.partial(pooling, spatial_scale=1 / 8, output_size=2)
    trunk = MiniCnn(width=4, name="backbone") if backbone else None
    return MilNetwork(C, pool, trunk, neck=neck, fc_width=16, dropout=0.5)


def case(channels=3, cells=48):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, cells, cells, channels)), jnp.float32)
    corner = rng.uniform(0, 30, (2, N, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 18, (2, N, 2))], -1)
    boxes[:, -2:] = 0  # padding
    stride = 8 if channels == 3 else 1
    inside = np.ones((2, cells // stride, cells // stride), bool)
    inside[0, :, 4:] = False
    prior = jnp.asarray(rng.uniform(size=(2, N, C)), jnp.float32)
    return images, jnp.asarray(inside), jnp.asarray(boxes, jnp.float32), prior


@pytest.mark.parametrize(("pooling", "neck"), [(roi_align, None), (roi_pool, 5)])
def test_shapes_and_independence(pooling, neck):
    model = detector(pooling, neck)
    images, inside, boxes, prior = case()
    variables = jax.jit(model.init)(jax.random.key(0), images, inside, boxes, prior)
    run = jax.jit(model.apply)
    logits, outputs = run(variables, images, inside, boxes, prior)
    assert logits.shape == (2, C)
    assert [x.shape for x in outputs] == [
        *((2, N, C + 1), (2, N, C + 1), (2, 3, N, C + 1), (2, 3, N, C + 1, 4))
    ]
    assert all(np.isfinite(x).all() for x in outputs)
    # The order of the boxes does not matter to each of them, nor the other image.
    turned = run(variables, images[::-1], inside[::-1], boxes[::-1, ::-1], prior[::-1, ::-1])[1]
    for one, other in zip(outputs, turned, strict=True):
        axis = 1 if one.ndim == 3 else 2
        np.testing.assert_allclose(one, jnp.flip(other[::-1], axis), atol=1e-5)
    # The branches differ: they share fc6 and fc7, not their last layers.
    assert np.abs(outputs.refine[:, 0] - outputs.refine[:, 1]).max() > 1e-4


def test_dropout_is_for_training_alone():
    model = detector(roi_align)
    images, inside, boxes, prior = case()
    variables = jax.jit(model.init)(jax.random.key(0), images, inside, boxes, prior)

    @functools.partial(jax.jit, static_argnums=1)
    def cls(key, train):
        rngs = {"dropout": key}
        return model.apply(variables, images, inside, boxes, prior, train, rngs=rngs)[1].cls

    keys = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(cls(keys[0], False), cls(keys[1], False))
    np.testing.assert_array_equal(cls(keys[0], True), cls(keys[0], True))
    assert np.abs(cls(keys[0], True) - cls(keys[1], True)).max() > 1e-4


def test_tag_logits_are_the_mean_of_the_best_cells_inside():
    model = detector(roi_align, backbone=False)
    images, inside, boxes, prior = case(channels=5, cells=6)
    variables = model.init(jax.random.key(0), (images,), inside, boxes, prior)
    maps = model.apply(variables, (images.astype(jnp.float16),), method="features")
    logits = model.apply(variables, maps, inside, 6, method="tag_logits")
    kernel, bias = (np.asarray(variables["params"]["tags"][k]) for k in ("kernel", "bias"))
    for image in range(2):
        cells = np.asarray(images[image].astype(jnp.float16), np.float32)[np.asarray(inside[image])]
        scores = np.sort(cells @ kernel[0, 0] + bias, axis=0)[::-1]
        np.testing.assert_allclose(logits[image], scores[:6].mean(0), atol=1e-5)


def test_cached_maps_get_the_same_treatment_as_the_backbones():
    model, bare = detector(roi_align), detector(roi_align, backbone=False)
    images, inside, boxes, prior = case()
    variables = jax.jit(model.init)(jax.random.key(0), images, inside, boxes, prior)
    params = dict(variables["params"])
    maps = MiniCnn(width=4).apply({"params": params.pop("backbone")}, images)
    through = model.apply(variables, images, inside, boxes, prior)
    cached = bare.apply({"params": params}, (maps,), inside, boxes, prior)
    for one, other in zip(jax.tree.leaves(through), jax.tree.leaves(cached), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_two_cached_maps_meet_at_the_size_of_the_finer():
    pool = functools.partial(roi_align, spatial_scale=1 / 8, output_size=2)
    model = MilNetwork(C, pool, None, levels=2, neck=7, fc_width=16)
    rng = np.random.default_rng(1)
    fine, coarse = (rng.normal(size=(2, n, n, f)).astype(np.float16) for n, f in ((6, 4), (3, 5)))
    _, inside, boxes, prior = case(channels=5, cells=6)
    variables = model.init(jax.random.key(0), (fine, coarse), inside, boxes, prior)
    maps = model.apply(variables, (fine, coarse), method="features")
    first, second = (variables["params"][f"necks_{i}"]["kernel"][0, 0] for i in range(2))
    for y, x in ((0, 0), (3, 4), (5, 5)):
        expected = np.maximum(fine[:, y, x] @ first + coarse[:, y // 2, x // 2] @ second, 0)
        np.testing.assert_allclose(maps[:, y, x], expected, atol=2e-3)


def test_evidence_is_inside_less_frame_and_joins_the_prior():
    """On maps that are constant in blocks, against sums over pixels; only the detection stream
    has it."""
    pool = functools.partial(roi_align, spatial_scale=1.0, output_size=16, sampling_ratio=1)
    maps = np.zeros((1, 40, 40, 2), np.float32)
    maps[0, 10:20, 10:20, 0] = 0.8  # just the first box
    maps[0, 24:40, 24:40, 1] = 0.5  # twice the sides of the second
    boxes = jnp.asarray([[[10, 10, 20, 20], [28, 28, 36, 36]]], jnp.float32)
    found = np.asarray(class_evidence(pool, jnp.asarray(maps), boxes))[0]
    assert found.shape == (2, 3) and (found[:, 0] == 0).all()
    assert found[0, 1] == pytest.approx(0.8, abs=0.1) and found[0, 2] == 0
    assert found[1, 2] == pytest.approx(0.5 - 1.5 * 0.5, abs=0.05)
    plain, evident = (
        MilNetwork(2, pool, None, fc_width=16, evidence=weight) for weight in (0.0, 3.0)
    )
    inside, prior = np.ones((1, 40, 40), bool), jnp.asarray([[[0.25, 0.75], [0.5, 0.125]]])
    nothing = jnp.zeros_like(prior)
    variables = plain.init(jax.random.key(0), (maps,), inside, boxes, prior)
    shares = jax.nn.sigmoid(plain.apply(variables, maps, method=lambda m, x: m.tags(x)))
    want = 3 * class_evidence(pool, shares, boxes)
    want = want.at[..., 1:].add(prior)
    a = plain.apply(variables, (maps,), inside, boxes, nothing)[1]
    b = evident.apply(variables, (maps,), inside, boxes, prior)[1]
    np.testing.assert_allclose(b.det - a.det, want, atol=1e-5)
    for name in ("cls", "refine", "deltas"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# VGG16 of width 4.
CHANNELS, WIDTH = (4, 8, 16, 32, 32), 16


def published(kind, box=False, dtype=jnp.float32):
    """(a published detector at reduced width, its random tensors, a reader of its files)."""
    state = plain_mil.random_state(kind, CHANNELS, WIDTH, C, seed=1, box=box)
    oicr = kind == "mmdet"
    pool = functools.partial(roi_pool, spatial_scale=1 / 8, output_size=7)
    trunk = Vgg16(CHANNELS[0], rectify_last=oicr, dtype=dtype, name="backbone")
    model = MilNetwork(
        C, pool, trunk, fc_width=WIDTH, class_maps=False, background=not oicr, dtype=dtype
    )
    return model, state, mmdet_oicr_arrays if oicr else wetectron_arrays


def published_case():
    rng = np.random.default_rng(3)
    image = rng.normal(size=(1, 64, 80, 3)).astype(np.float32)
    corner = rng.uniform(0, 60, (10, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 40, (10, 2))], 1)
    hard = [[0, 0, 79, 63], [5, 5, 5, 5], [4, 4, 12, 20], [70, 50, 120, 90], [200, 9, 240, 30]]
    boxes = np.concatenate([boxes, hard]).astype(np.float32)
    return image, boxes


@pytest.mark.parametrize(("kind", "box"), [("wetectron", False), ("mmdet", False), ("mmdet", True)])
def test_converted_detectors_equal_plain_pytorch(tmp_path, kind, box):
    model, state, read = published(kind, box)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "f.pth")
    params = unflatten(read(tmp_path / "f.pth")[0])
    image, boxes = published_case()
    nothing = jnp.zeros((1, len(boxes), C))
    logits, found = jax.jit(model.apply)({"params": params}, image, None, boxes[None], nothing)
    x = torch.from_numpy(image).permute(0, 3, 1, 2)
    want = {k: v if v is None else v.numpy() for k, v in
            plain_mil.forward(state, kind, x, torch.from_numpy(boxes)).items()}  # fmt: skip
    assert logits is None
    if kind == "mmdet":  # one regressor for all classes, or none
        shape = (3, len(boxes), C + 1, 4)
        want["deltas"] = np.zeros(shape) if not box else np.broadcast_to(
            want["deltas"][None, :, None], shape
        )  # fmt: skip
    maps = model.apply({"params": params}, image, method="features")
    pairs = {name: (getattr(found, name)[0], want[name]) for name in found._fields}
    pairs["features"] = (maps[0].transpose(2, 0, 1), want["features"][0])
    everything = np.ones(len(boxes), bool)
    pairs["scores"] = (wsddn_scores(found.cls[0], found.det[0], everything), want["scores"])
    for name, (mine, theirs) in pairs.items():
        assert mine.shape == theirs.shape, name
        bound = 1e-4 * max(1e-3, np.abs(theirs).max())
        np.testing.assert_allclose(mine, theirs, atol=bound, err_msg=name)
        assert np.abs(theirs).max() > 0.01 or (name == "deltas" and not box)


def test_a_converted_file_is_a_whole_detector(tmp_path):
    """Its metadata say everything but the channels, which are VGG16's in what is published."""
    _, state, read = published("wetectron")
    torch.save(state, tmp_path / "f.pth")
    arrays, metadata = read(tmp_path / "f.pth")
    config = json.loads(metadata["config"])
    config["model"]["backbone_width"] = CHANNELS[0]
    path = tmp_path / "converted.safetensors"
    write_arrays(path, arrays, {**metadata, "config": json.dumps(config)})
    detector, params = load_detector(path)
    assert (detector.kind, detector.classes) == ("mil", C)
    assert detector.config.model.method == "mist" and detector.config.model.pixels == "mist"
    image = np.random.default_rng(4).integers(0, 256, (1, 64, 80, 3)).astype(np.uint8)
    boxes = published_case()[1]
    batch = {
        "image": image,
        "size": np.float32([[64, 80]]),
        "boxes": boxes[None],
        "valid": np.ones((1, len(boxes)), bool),
        "prior": np.zeros((1, len(boxes), C), np.float32),
    }
    scores, moved = jax.jit(detector.score)(params, batch)
    pixels = image[..., ::-1] - np.float32([102.9801, 115.9465, 122.7717])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    want = plain_mil.forward(state, "wetectron", x, torch.from_numpy(boxes))
    wanted = want["refine"].softmax(-1).mean(0)[:, 1:].numpy()
    np.testing.assert_allclose(scores[0], wanted, atol=1e-4)
    proposals = np.repeat(boxes[:, None], C, 1)
    wanted = decode(want["deltas"].mean(0)[:, 1:].numpy(), proposals)
    np.testing.assert_allclose(moved[0], wanted, rtol=1e-3, atol=1e-2)
    found = jax.device_get(jax.jit(detector.predict)(params, batch))
    assert found.valid[0].any() and found.boxes[0].max() <= 80


def test_bfloat16_detector_is_near(tmp_path):
    """Within a twentieth of the largest value: 8 bits and fifteen layers of random weights."""
    outputs = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model, state, read = published("wetectron", dtype=dtype)
        torch.save(state, tmp_path / "f.pth")
        params = unflatten(read(tmp_path / "f.pth")[0])
        image, boxes = published_case()
        nothing = jnp.zeros((1, len(boxes), C))
        run = jax.jit(model.apply)
        outputs.append(run({"params": params}, image, None, boxes[None], nothing)[1])
    for exact, half in zip(*outputs, strict=True):
        assert half.dtype == jnp.float32
        error = np.abs(half - exact).max()
        assert 0 < error < 0.05 * np.abs(exact).max()


def test_without_a_background_column_the_classes_are_first():
    maps = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 5)), jnp.float32)
    _, inside, boxes, prior = case(channels=5, cells=6)
    pool = functools.partial(roi_align, spatial_scale=1 / 8, output_size=4)
    model, plain = (
        MilNetwork(C, pool, None, fc_width=16, evidence=weight, background=False)
        for weight in (2.0, 0.0)
    )
    variables = jax.jit(model.init)(jax.random.key(0), (maps,), inside, boxes, prior)

    @jax.jit
    def run(variables, prior):
        both = (m.apply(variables, (maps,), inside, boxes, prior)[1] for m in (model, plain))
        shares = jax.nn.sigmoid(plain.apply(variables, maps, method=lambda m, x: m.tags(x)))
        return *both, class_evidence(pool, shares, boxes)

    found, bare, evidence = run(variables, prior)
    assert found.cls.shape == found.det.shape == (2, N, C)
    assert found.refine.shape == (2, 3, N, C + 1)
    without = run(variables, jnp.zeros_like(prior))[0]
    np.testing.assert_allclose(found.det - without.det, prior, atol=1e-5)
    np.testing.assert_allclose(found.det - bare.det, 2 * evidence[..., 1:], atol=1e-5)
    assert np.abs(evidence[..., 1:]).max() > 0.01


def test_class_maps_are_optional_and_needed_for_evidence():
    maps, inside, boxes, prior = case(channels=5, cells=6)
    pool = functools.partial(roi_align, spatial_scale=1 / 8, output_size=2)
    plain, bare = (
        MilNetwork(C, pool, None, fc_width=16, class_maps=wanted) for wanted in (True, False)
    )
    arguments = ((maps,), inside, boxes, prior)
    params = jax.jit(plain.init)(jax.random.key(0), *arguments)["params"]
    fewer = jax.eval_shape(bare.init, jax.random.key(0), *arguments)["params"]
    assert set(params) - set(fewer) == {"tags"}
    expected = jax.jit(plain.apply)({"params": params}, *arguments)[1]
    params = {name: params[name] for name in fewer}
    logits, outputs = jax.jit(bare.apply)({"params": params}, *arguments)
    assert logits is None
    for one, other in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    wrong = MilNetwork(C, pool, None, fc_width=16, class_maps=False, evidence=1.0)
    with pytest.raises(ValueError, match="class maps"):
        jax.eval_shape(wrong.init, jax.random.key(0), *arguments)


class Halve(nn.Module):
    """Stands in for a drop block: half of what is valid in training, with a parameter."""

    @nn.compact
    def __call__(self, x, valid, train):
        factor = self.param("factor", nn.initializers.constant(0.5), ())
        assert x.ndim == 5 and valid.shape == x.shape[:2] and valid.dtype == bool
        return x * jnp.where(valid[..., None, None, None], factor, 1.0) if train else x


def test_the_drop_block_sits_between_pooling_and_fc6():
    maps, inside, boxes, prior = case(channels=5, cells=6)
    pool = functools.partial(roi_align, spatial_scale=1 / 8, output_size=2)
    plain, dropped = (
        MilNetwork(C, pool, None, fc_width=16, dropout=0.0, drop_block=block)
        for block in (None, Halve(name="drop_block"))
    )
    variables = jax.jit(dropped.init)(jax.random.key(0), (maps,), inside, boxes, prior)
    assert variables["params"]["drop_block"]["factor"] == 0.5
    valid = jnp.arange(N)[None].repeat(2, 0) < 4
    rest = {k: v for k, v in variables["params"].items() if k != "drop_block"}

    @jax.jit
    def run():
        clean, halved = (
            plain.apply({"params": rest}, x, boxes, prior, False, method="outputs").cls
            for x in (maps, maps / 2)
        )
        tested, trained, whole = (
            dropped.apply(variables, (maps,), inside, boxes, prior, *more)[1].cls
            for more in ((False, valid), (True, valid), (True,))
        )
        return clean, halved, tested, trained, whole

    clean, halved, tested, trained, whole = run()
    np.testing.assert_allclose(tested, clean, atol=1e-6)
    np.testing.assert_allclose(trained[:, :4], halved[:, :4], atol=1e-6)
    np.testing.assert_allclose(trained[:, 4:], clean[:, 4:], atol=1e-6)
    assert np.abs(trained[:, :4] - clean[:, :4]).max() > 1e-4
    np.testing.assert_allclose(whole, halved, atol=1e-6)  # without `valid` all are

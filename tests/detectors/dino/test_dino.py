"""The network of any size: types, images apart, rematerialisation, compilations, detections."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_dino import SIZES, small

from weaksam_jax.detectors.dino.config import TestConfig as TestOptions
from weaksam_jax.detectors.dino.decoder import box_code
from weaksam_jax.detectors.dino.layers import SelfAttention
from weaksam_jax.detectors.dino.neck import ChannelMapper
from weaksam_jax.detectors.dino.predict import select_detections
from weaksam_jax.engine.step import count_compilations
from weaksam_jax.engine.weights import flatten

KEYS = jax.random.split(jax.random.key(3), 3)  # of the images


def batch_of(count=3, side=64, seed=0):
    rng = np.random.default_rng(seed)
    images = np.zeros((count, side, side, 3), np.uint8)
    for image, (height, width) in zip(images, SIZES, strict=False):
        image[:height, :width] = rng.integers(0, 256, (height, width, 3))
    corner = rng.uniform(0, 12, (count, 4, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(6, 20, corner.shape)], -1)
    return {
        "image": images,
        "size": np.int32(SIZES[:count]),
        "boxes": boxes.astype(np.float32),
        "labels": rng.integers(0, 2, (count, 4)).astype(np.int32),
        "valid": np.arange(4)[None] < np.array([[4], [2], [0]])[:count],
    }


@functools.cache
def params_of(**model):
    """Parameters large enough that outputs differ."""
    rng = np.random.default_rng(1)
    fresh = small(model=model).init(jax.random.key(0), batch_of())
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), fresh)


@functools.cache
def outputs_of(precision):
    detector = small(model={"precision": precision})
    run = jax.jit(lambda p, b: detector.training_outputs(p, b, KEYS))
    return jax.device_get(run(params_of(), batch_of()))


def test_outputs_have_the_stated_shapes_and_are_float32():
    for precision in ("float32", "bfloat16"):
        found = outputs_of(precision)
        assert found.logits.shape == (2, 3, 12, 2) and found.boxes.shape == (2, 3, 12, 4)
        assert found.encoder_logits.shape == (3, 12, 2) and found.encoder_boxes.shape == (3, 12, 4)
        assert found.denoising_logits.shape == (2, 3, 12, 2)
        assert found.denoising_boxes.shape == (2, 3, 12, 4)
        floats = jax.tree.leaves(found[:-1])
        assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in floats)
        for boxes in (found.boxes, found.encoder_boxes, found.denoising_boxes):
            assert boxes.min() >= 0 and boxes.max() <= 1 and boxes.std() > 0.01


def test_bfloat16_is_near_float32():
    """Where both choose the same tokens; a coarse float moves the rest of the order."""
    wide, narrow = map(outputs_of, ("float32", "bfloat16"))
    assert np.abs(wide.denoising_boxes - narrow.denoising_boxes).max() < 0.05
    assert np.abs(wide.denoising_logits - narrow.denoising_logits).max() < 0.2
    assert not np.array_equal(wide.denoising_logits, narrow.denoising_logits)


@pytest.mark.parametrize("encoder", ["deformable", "pyramid"])
def test_images_of_a_batch_do_not_touch_one_another(encoder):
    batch = batch_of()
    detector = small(model={"encoder": encoder})
    params, run = params_of(encoder=encoder), jax.jit(detector.predict)
    seen = {name: batch[name] for name in ("image", "size")}
    both = run(params, seen)
    for i in range(3):
        alone = run(
            params, {name: np.repeat(value[i : i + 1], 3, 0) for name, value in seen.items()}
        )
        np.testing.assert_allclose(alone.scores[0], both.scores[i], rtol=1e-4)
        np.testing.assert_allclose(alone.boxes[0], both.boxes[i], atol=1e-2)


def test_the_pyramid_encoder_has_no_attention_and_the_same_rest():
    deformable, pyramid = (set(flatten(params_of(encoder=e))) for e in ("deformable", "pyramid"))
    own = {name for name in pyramid if name.startswith("encoder/")}
    assert pyramid - own == {n for n in deformable if not n.startswith("encoder/")}
    assert own and not any("attn" in name for name in own)


@functools.cache
def gradient_of(remat):
    """(value, gradient) of something that every output has a part in."""
    detector, batch = small(model={"remat": remat}), batch_of(2)

    def loss(params):
        found = detector.training_outputs(params, batch, KEYS[:2])
        return sum(jnp.sum(jnp.sin(x)) for x in found[:-1])

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params_of()))


@pytest.mark.parametrize("remat", ["layers", "all"])
def test_rematerialisation_changes_nothing_but_memory(remat):
    (value, plain), (again, other) = gradient_of("none"), gradient_of(remat)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for name, one in flatten(plain).items():
        scale = np.abs(one).max()
        np.testing.assert_allclose(flatten(other)[name], one, atol=1e-4 * scale + 1e-6)


def test_one_program_per_padded_size_whatever_is_in_the_images():
    detector, params = small(), params_of()
    step = jax.jit(lambda p, b: detector.training_outputs(p, b, KEYS[:2]).logits)
    with count_compilations("<lambda>") as compiled:
        for side in (64, 96):
            for seed in range(3):
                step(params, batch_of(2, side, seed))
    assert len(compiled) == 2


def test_a_small_image_has_as_many_queries_as_cells():
    """Those of the padding and at the edge come last, as a box that is the whole image: with
    infinite logits, and finite gradients."""
    detector, batch = small(model={"queries": 500}), batch_of(2)

    def loss(params):
        found = detector.training_outputs(params, batch, KEYS[:2])
        return sum(jnp.sum(x) for x in found[:-1]), found

    params = detector.init(jax.random.key(0), batch)
    grads, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert found.boxes.shape == (2, 2, 64 + 16 + 4 + 1, 4)
    assert bool(jnp.isfinite(found.logits).all())
    assert (np.asarray(found.encoder_boxes[0, -1]) == 1).all()
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))


def test_self_attention_is_pytorchs():
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(2, 2, 7, 12)).astype(np.float32)
    visible = rng.random((2, 7, 7)) < 0.5
    visible |= np.eye(7, dtype=bool)
    module = SelfAttention(3)
    params = module.init(jax.random.key(0), x, positions, visible)["params"]
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    names = ("query", "key", "value")
    weights = [torch.tensor(np.array(params[n]["kernel"])).T for n in names]
    theirs.in_proj_weight.data = torch.cat(weights)
    theirs.out_proj.weight.data = torch.tensor(np.array(params["out"]["kernel"])).T
    placed, blocked = torch.tensor(x + positions), torch.tensor(~visible).repeat_interleave(3, 0)
    expected = theirs(placed, placed, torch.tensor(x), attn_mask=blocked)[0].detach()
    ours = module.apply({"params": params}, x, positions, visible)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_the_neck_is_pytorchs():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, *s)).astype(np.float32) for s in ((9, 12, 4), (5, 6, 6))]
    module = ChannelMapper(8, extra=2, groups=4, bias=True)
    params = module.init(jax.random.key(0), maps)["params"]
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)

    def level(x, name, stride):
        conv, norm = (params[f"level{name}_{part}"] for part in ("conv", "norm"))
        kernel = torch.tensor(conv["kernel"]).permute(3, 2, 0, 1)
        x = torch.nn.functional.conv2d(
            x, kernel, torch.tensor(conv["bias"]), stride, kernel.shape[-1] // 2
        )
        return torch.nn.functional.group_norm(
            x, 4, torch.tensor(norm["scale"]), torch.tensor(norm["bias"])
        )

    inputs = [torch.tensor(one).permute(0, 3, 1, 2) for one in maps]
    expected = [level(inputs[0], 0, 1), level(inputs[1], 1, 1), level(inputs[1], 2, 2)]
    expected.append(level(expected[2], 3, 2))
    for ours, theirs in zip(module.apply({"params": params}, maps), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-4)


def test_codes_of_boxes_turn_with_the_box():
    """y, x, width, height in this order; sine and cosine in turn, the first of 2 pi share."""
    code = np.asarray(box_code(jnp.float32([[0.25, 0.5, 0.75, 1.0]]), 16)).reshape(4, 8)
    np.testing.assert_allclose(
        code[:, 0], np.sin(2 * np.pi * np.float64([0.5, 0.25, 0.75, 1])), atol=1e-6
    )
    np.testing.assert_allclose(
        code[:, 1], np.cos(2 * np.pi * np.float64([0.5, 0.25, 0.75, 1])), atol=1e-6
    )
    assert (np.abs(code[:, 6]) < 0.01).all(), "the last wave is 1000 turns long"


def test_detections_are_the_best_pairs_of_query_and_class():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    boxes = rng.uniform(0.2, 0.6, (6, 4)).astype(np.float32)
    boxes[2] = [1.5, 1.5, 0.1, 0.1]  # outside: never valid
    config = TestOptions(max_detections=7, score_threshold=0.4)
    found = jax.device_get(select_detections(logits, boxes, jnp.int32([50, 80]), config=config))
    every = sorted(((logits[q, c], q, c) for q in range(6) for c in range(3)), reverse=True)[:7]
    for rank, (logit, query, label) in enumerate(every):
        score = 1 / (1 + np.exp(-logit))
        np.testing.assert_allclose(found.scores[rank], score, rtol=1e-5)
        assert found.labels[rank] == label
        assert found.valid[rank] == (score > 0.4 and query != 2)
        x, y, w, h = boxes[query]
        box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * [80, 50, 80, 50]
        np.testing.assert_allclose(found.boxes[rank], np.clip(box, 0, [80, 50] * 2), atol=1e-4)
    many = select_detections(logits, boxes, jnp.int32([50, 80]), config=TestOptions())
    assert many.boxes.shape == (100, 4) and int(many.valid.sum()) == 15


def test_the_backbone_takes_smaller_steps():
    params = params_of()
    gradients = jax.tree.map(jnp.ones_like, params)

    def moved(**optim):
        tx = small(optim={"weight_decay": 0.0, "warmup": 0, **optim}).optimizer()
        return tx.update(gradients, tx.init(params), params)[0]

    usual, slow = flatten(moved()), flatten(moved(backbone_lr=0.1))
    for name, one in usual.items():
        factor = 0.1 if name.startswith("backbone/") else 1.0
        np.testing.assert_allclose(slow[name], factor * one, rtol=1e-5)

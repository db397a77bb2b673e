"""DINO's losses against mmdetection's numbers and a PyTorch form, with and without query drop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dino_loss_cases import (
    FLOATS,
    SHARED,
    extract,
    golden,
    golden_batch,
    golden_outputs,
    in_torch,
    part_of,
    random_batch,
    random_outputs,
)

from weaksam_jax.detectors.dino.loss import dino_loss, match
from weaksam_jax.detectors.dino.loss_config import LossConfig, QueryDropConfig
from weaksam_jax.losses.set_loss import matching_cost, targets_of

CASES = ("g35", "g05", "g00")
PLAIN = LossConfig(drop=None)


@functools.partial(jax.jit, static_argnames="config")
def _differentiated(outputs, batch, step, config):
    def loss(floats):
        own = outputs._replace(**dict(zip(FLOATS, floats, strict=True)))
        return dino_loss(own, batch, step=step, config=config)

    floats = tuple(jnp.asarray(getattr(outputs, name)) for name in FLOATS)
    (value, terms), gradients = jax.value_and_grad(loss, has_aux=True)(floats)
    return value, terms, dict(zip(FLOATS, gradients, strict=True))


def differentiated(outputs, batch, *, config=PLAIN, step=0):
    """(loss, terms and shares, gradients by the six arrays); one program per config and shapes."""
    return _differentiated(outputs, batch, np.int32(step), config=config)


def close(ours, theirs, rtol=1e-4):
    """To rtol of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * np.abs(theirs).max(initial=1e-6))


def test_the_extract_is_of_the_golden_numbers():
    if not SHARED.exists():
        pytest.skip(f"no golden numbers at {SHARED}")
    with np.load(SHARED) as whole:
        for name, value in extract().items():
            np.testing.assert_array_equal(value, whole[name])


@pytest.mark.parametrize("case", CASES)
def test_every_term_is_mmdetections(case):
    arrays = golden(case)
    loss, terms, _ = differentiated(golden_outputs(arrays), golden_batch(arrays))
    want = {k.removeprefix("loss."): v for k, v in arrays.items() if k.startswith("loss.")}
    np.testing.assert_allclose(loss, want.pop("total"), rtol=1e-4)
    assert set(terms) == set(want) and len(want) == 15
    for name, value in want.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_query_is_matched_as_in_mmdetection(case):
    arrays = golden(case)
    outputs, batch = golden_outputs(arrays), golden_batch(arrays)
    logits = np.concatenate([outputs.logits, outputs.encoder_logits[None]])
    boxes = np.concatenate([outputs.boxes, outputs.encoder_boxes[None]])
    slots = match(logits, boxes, targets_of(**batch), config=PLAIN)
    want = arrays["match.gt_inds"]
    np.testing.assert_array_equal(slots.positive, want > 0)
    np.testing.assert_array_equal(slots.index, np.maximum(want - 1, 0))
    if "match.cost_cls_l1_giou" in arrays:
        for part, name in enumerate(("cls", "l1", "giou")):
            theirs = arrays["match.cost_cls_l1_giou"][part].swapaxes(-1, -2)
            weights = {"cls": 0, "l1": 0, "giou": 0} | {name: getattr(PLAIN, f"cost_{name}")}
            ours = matching_cost(logits, boxes, targets_of(**batch), **weights)
            real = ~np.isnan(theirs)
            assert real.any()
            close(np.asarray(ours)[real], theirs[real])


@pytest.mark.parametrize("case", CASES)
def test_gradients_that_reach_the_heads_are_mmdetections(case):
    """Biases of class heads and of last box layers: sums over queries, and no other path leads
    there."""
    arrays = golden(case)
    outputs = golden_outputs(arrays)
    _, _, found = differentiated(outputs, golden_batch(arrays))
    by_layer = [
        found["logits"][i].sum((0, 1)) + found["denoising_logits"][i].sum((0, 1)) for i in (0, 1)
    ]
    by_layer.append(found["encoder_logits"].sum((0, 1)))
    slope = {
        name: found[name] * x * (1 - x) for name, x in outputs._asdict().items() if "boxes" in name
    }
    sides = {1: slope["boxes"][1].sum((0, 1)) + slope["denoising_boxes"][1].sum((0, 1))}
    sides[2] = slope["encoder_boxes"].sum((0, 1))
    names = {f"grad.bbox_head.cls_branches.{i}.bias": by_layer[i] for i in range(3)}
    names |= {f"grad.bbox_head.reg_branches.{i}.4.bias": sides[i] for i in (1, 2)}
    compared = [name for name in names if name in arrays]
    assert "grad.bbox_head.cls_branches.2.bias" in compared
    assert len(compared) == (5 if case == "g35" else 1)
    for name in compared:
        close(names[name], arrays[name])


DROPS = {
    "none": None,
    "things": {"encoder": False},
    "encoder": {"encoder": True},
    "denoising": {"encoder": True, "denoising": True},
    "background": {"encoder": True, "denoising": True, "background": True},
}


@pytest.mark.parametrize("name", DROPS)
def test_values_and_gradients_are_those_of_the_torch_form(name):
    if name == "none":
        arrays = golden("g35")
        outputs, batch = golden_outputs(arrays), golden_batch(arrays)
    else:
        rng = np.random.default_rng(0)
        batch = random_batch(rng)
        outputs = random_outputs(rng, batch)
    options = (
        DROPS[name] and {"percentile": 70.0, "background": False, "denoising": False} | DROPS[name]
    )
    config = LossConfig(drop=options and QueryDropConfig(**options))
    want, gradients = in_torch(outputs, batch, options)
    loss, terms, found = differentiated(outputs, batch, config=config)
    shares = {key: float(terms.pop(key)) for key in list(terms) if key.startswith("dropped_")}
    assert set(terms) == set(want)
    for key, value in want.items():
        np.testing.assert_allclose(terms[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    np.testing.assert_allclose(loss, sum(want.values()), rtol=1e-5)
    for key, gradient in gradients.items():
        close(found[key], gradient)
        assert np.abs(gradient).max() > 0
    parts = {"": True} | {f"{k}_": (DROPS[name] or {}).get(k) for k in ("encoder", "denoising")}
    kinds = ("things", "background") if name == "background" else ("things",)
    logged = {f"dropped_{p}{k}" for p, on in parts.items() for k in kinds if on}
    assert set(shares) == (logged if DROPS[name] else set())
    assert all(0 < share < 1 for share in shares.values())


def test_dropping_begins_at_its_step():
    rng = np.random.default_rng(1)
    batch = random_batch(rng)
    outputs = random_outputs(rng, batch)
    config = LossConfig(drop=QueryDropConfig(percentile=70.0, background=True, start=5))
    plain, before, after = (
        differentiated(outputs, batch, config=own, step=step)
        for own, step in ((PLAIN, 0), (config, 4), (config, 5))
    )
    np.testing.assert_allclose(before[0], plain[0], rtol=1e-6)
    assert before[1]["dropped_things"] == 0
    assert after[0] < plain[0] and after[1]["dropped_things"] > 0
    everything = LossConfig(drop=QueryDropConfig(percentile=100.0))
    kept = differentiated(outputs, batch, config=everything)[0]
    np.testing.assert_allclose(kept, plain[0], rtol=1e-6)


def split(outputs, batch, devices):
    """The same images by device, `[devices, ...]`."""
    images = len(batch["valid"]) // devices
    parts = [part_of(outputs, batch, slice(i * images, (i + 1) * images)) for i in range(devices)]
    return jax.tree.map(lambda *one: np.stack(one), *parts)


@functools.partial(jax.jit, static_argnames="config")
def on_devices(outputs, batch, config):
    """(losses, terms and shares) of each device."""
    own = functools.partial(dino_loss, step=0, config=config, axis_name="devices")
    return jax.vmap(own, axis_name="devices")(outputs, batch)


@pytest.mark.parametrize("scope", ["global", "device"])
def test_the_mean_over_devices_is_the_loss_of_the_whole_batch(scope):
    """Also where one device has no objects, or only one object or none is left."""
    rng = np.random.default_rng(2)
    batch = random_batch(rng, images=4)
    outputs = random_outputs(rng, batch)
    config = LossConfig(drop=QueryDropConfig(background=True, denoising=True, scope=scope))
    for kept in (None, 1, 0):
        if kept is not None:
            batch["valid"].flat[np.flatnonzero(batch["valid"])[kept:]] = False
        whole, terms, _ = differentiated(outputs, batch, config=config)
        loss, found = on_devices(*split(outputs, batch, 4), config=config)
        shares = {name: value for name, value in found.items() if name.startswith("dropped_")}
        assert all((value == value[0]).all() for value in shares.values())
        if scope == "global":
            np.testing.assert_allclose(loss.mean(), whole, rtol=1e-5)
            for name, value in found.items():
                np.testing.assert_allclose(value.mean(), terms[name], rtol=1e-5, atol=1e-7)
        elif kept is None:
            assert abs(float(loss.mean()) - float(whole)) > 1e-4


def spoiled(kind, outputs, batch):
    """Outputs and batch with something bad in them."""
    edge = {
        "no objects": lambda b: {**b, "valid": np.zeros_like(b["valid"])},
        "boxes without area": lambda b: {**b, "boxes": np.tile(b["boxes"][..., :2], 2)},
        "boxes outside": lambda b: {**b, "boxes": b["boxes"] * 50 - 900},
        "one pixel": lambda b: {**b, "size": np.ones_like(b["size"])},
        "twins": lambda b: {**b, "boxes": b["boxes"] * 0 + b["boxes"][:1, :1]},
    }
    if kind in edge:
        return outputs, edge[kind](batch)
    floats = dict(zip(FLOATS, outputs, strict=False))
    if kind == "bfloat16":
        changed = {name: jnp.asarray(value, jnp.bfloat16) for name, value in floats.items()}
    elif kind == "sure":
        changed = {k: v * 1e4 if "logits" in k else v for k, v in floats.items()}
    elif kind == "alike":
        changed = {k: v * 0 if "logits" in k else v * 0 + 0.5 for k, v in floats.items()}
    else:
        changed = {k: v if "logits" in k else np.round(v) for k, v in floats.items()}
    return outputs._replace(**changed), batch


KINDS = ("no objects", "boxes without area", "boxes outside", "one pixel", "twins", "bfloat16")


@pytest.mark.parametrize("kind", [*KINDS, "sure", "alike", "corners"])
def test_spoiled_samples_have_finite_losses_and_gradients(kind):
    rng = np.random.default_rng(3)
    batch = random_batch(rng)
    outputs, batch = spoiled(kind, random_outputs(rng, batch), batch)
    config = LossConfig(drop=QueryDropConfig(background=True, denoising=True))
    loss, terms, gradients = differentiated(outputs, batch, config=config)
    assert loss.dtype == jnp.float32 and np.isfinite(loss)
    assert all(np.isfinite(value) for value in terms.values())
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients.values())
    if kind == "bfloat16":
        exact = outputs._replace(
            **{k: jnp.asarray(v, jnp.float32) for k, v in zip(FLOATS, outputs, strict=False)}
        )
        np.testing.assert_allclose(loss, differentiated(exact, batch, config=config)[0], rtol=1e-5)


@pytest.mark.parametrize("name", FLOATS)
def test_a_number_that_is_not_finite_shows_and_ends(name):
    rng = np.random.default_rng(4)
    batch = random_batch(rng)
    outputs = random_outputs(rng, batch)
    changed = np.full_like(getattr(outputs, name), np.nan)
    config = LossConfig(drop=QueryDropConfig(background=True, denoising=True))
    loss, _, _ = differentiated(outputs._replace(**{name: changed}), batch, config=config)
    assert np.isnan(loss)


def test_more_objects_than_queries_and_no_denoising():
    rng = np.random.default_rng(5)
    batch = random_batch(rng, objects=9)
    outputs = random_outputs(rng, batch, queries=6, slots=0)
    want, gradients = in_torch(outputs, batch)
    _, terms, found = differentiated(outputs, batch)
    for key, value in want.items():
        np.testing.assert_allclose(terms[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    for key, gradient in gradients.items():
        close(found[key], gradient)

"""What each method of the MIL stage trains and what it takes its detections from."""

import dataclasses

import jax
import numpy as np
import pytest

from weaksam_jax.boxes import decode
from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.detectors.mil.detect import infer_view
from weaksam_jax.detectors.mil.network import build_model, network_input
from weaksam_jax.detectors.mil.train import detector_loss

C, N = 3, 6
PLAIN = WsodSettings(width=8, pool_size=2, dropout=0.0, evidence=0.0, max_proposals=N)


@pytest.fixture(scope="module")
def world():
    """(model, parameters, a batch of two images: one without tags, padded proposals)."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 30, (2, N, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 30, (2, N, 2))], -1)
    valid = np.arange(N)[None, :] < np.array([[N], [N - 2]])
    boxes[~valid] = 0
    batch = {
        "image": rng.integers(0, 255, (2, 64, 64, 3)).astype(np.uint8),
        "size": np.full((2, 2), 64, np.float32),
        "boxes": boxes.astype(np.float32),
        "prior": np.zeros((2, N, C), np.float32),
        "valid": valid,
        "tags": np.array([[True, False, True], [False] * C]),
    }
    model = build_model(PLAIN, C)
    inputs = (*network_input(PLAIN, batch), batch["boxes"], batch["prior"])
    params = jax.jit(model.init)(jax.random.key(0), *inputs)["params"]
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)
    outputs = jax.jit(model.apply)({"params": params}, *inputs)[1]
    return model, params, batch, outputs


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("method", ["mist", "oicr", "wsddn"])
def test_detections_come_from_the_methods_own_head(world, method):
    model, params, batch, outputs = world
    settings = dataclasses.replace(PLAIN, method=method)
    scores, boxes = jax.jit(lambda p, b: infer_view(model, settings, p, b))(params, batch)
    cls, det, refine, deltas = (np.asarray(x, np.float64) for x in outputs)
    for image in range(2):
        own = batch["valid"][image]
        mean = softmax(refine[image], -1).mean(0)
        if method == "wsddn":
            mean = softmax(cls[image], 1)
            mean[own] *= softmax(det[image][own], 0)
        np.testing.assert_allclose(scores[image][own], mean[own, 1:], rtol=1e-4)
        proposals = np.repeat(batch["boxes"][image][:, None], C, 1)
        if method == "mist":
            proposals = decode(deltas[image].mean(0)[:, 1:], proposals.astype(np.float64))
        np.testing.assert_allclose(boxes[image], proposals, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "taught"),
    [
        ({"method": "mist"}, {"cls", "det", "refine", "deltas"}),
        ({"method": "oicr"}, {"cls", "det", "refine"}),
        ({"method": "oicr", "oicr_rule": "release"}, {"cls", "det", "refine"}),
        ({"method": "wsddn"}, {"cls", "det"}),
    ],
)
def test_losses_teach_the_heads_of_the_method(world, changes, taught):
    model, params, batch, _ = world
    settings = dataclasses.replace(PLAIN, tag_weight=0.0, **changes)

    @jax.jit
    def gradient(params, batch):
        return jax.grad(lambda p: detector_loss(model, settings, p, batch, jax.random.key(0))[0])(
            params
        )

    found = gradient(params, batch)
    moved = {
        name.split("_")[0]
        for name, layer in found.items()
        if any(leaf.any() for leaf in jax.tree.leaves(layer))
    }
    assert moved & {"cls", "det", "refine", "deltas"} == taught


def test_options_reach_the_loss_and_an_uncertain_image_teaches_nothing(world):
    """An image that is an example of nothing comes without valid proposals (`MilSamples`)."""
    model, params, batch, _ = world
    batch = batch | {"valid": batch["valid"] & np.array([[True], [False]])}

    def terms(batch, **changes):
        settings = dataclasses.replace(PLAIN, method="oicr", **changes)
        loss = jax.jit(lambda p, b: detector_loss(model, settings, p, b, jax.random.key(0))[1])
        return loss(params, batch)

    both = terms(batch)
    tagged = terms({name: value[:1] for name, value in batch.items()})
    for name in ("image", "refine", "tags"):
        np.testing.assert_allclose(both[name], tagged[name] / 2, rtol=1e-5)
    other = terms(batch, oicr_rule="release", image_loss="sum")
    assert other["refine"] < both["refine"]  # no branch weight 3
    np.testing.assert_allclose(other["image"], (C + 1) * both["image"], rtol=1e-5)
    assert terms(batch, ignore_below=0.9)["refine"] < both["refine"]

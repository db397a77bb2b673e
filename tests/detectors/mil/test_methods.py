"""What each method of the MIL detector trains and what it takes its detections from."""

import jax
import numpy as np
import pytest
from configs import vary

from weaksam_jax.backbones.pixels import network_input
from weaksam_jax.boxes import decode
from weaksam_jax.detectors.mil import MilConfig, MilDetector
from weaksam_jax.engine.step import keys_of

C, N = 3, 6
KEYS = keys_of(jax.random.key(0), 2)
PLAIN = vary(MilConfig(), model={"fc_width": 8, "pool_size": 2, "dropout": 0.0, "evidence": 0.0})


@pytest.fixture(scope="module")
def case():
    """(parameters, a batch of two images: one without tags, padded proposals; the outputs)."""
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
    detector = MilDetector(PLAIN, C)
    params = detector.init(jax.random.key(0), batch)
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)
    images = network_input(batch["image"], batch["size"], "mini")
    given = images, np.ones((2, 8, 8), bool), batch["boxes"], batch["prior"]
    outputs = jax.jit(detector.network.apply)({"params": params}, *given)[1]
    return params, batch, outputs


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("method", ["mist", "oicr", "wsddn"])
def test_detections_come_from_the_methods_own_head(case, method):
    params, batch, outputs = case
    detector = MilDetector(vary(PLAIN, model={"method": method}), C)
    scores, boxes = jax.jit(detector.score)(params, batch)
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


def terms(params, batch, **loss):
    """The terms of OICR's loss, with these settings of the loss."""
    detector = MilDetector(vary(PLAIN, model={"method": "oicr"}, loss=loss), C)
    return jax.jit(detector.loss)(params, batch, KEYS, np.int32(0))[1]


@pytest.mark.parametrize(
    ("method", "rule", "taught"),
    [
        ("mist", "paper", {"cls", "det", "refine", "deltas"}),
        ("oicr", "paper", {"cls", "det", "refine"}),
        ("oicr", "official", {"cls", "det", "refine"}),
        ("wsddn", "paper", {"cls", "det"}),
    ],
)
def test_losses_teach_the_heads_of_the_method(case, method, rule, taught):
    params, batch, _ = case
    loss = {"tag_weight": 0.0, "oicr_rule": rule}
    detector = MilDetector(vary(PLAIN, model={"method": method}, loss=loss), C)

    @jax.jit
    @jax.grad
    def gradient(params):
        return detector.loss(params, batch, KEYS, np.int32(0))[0]

    found = gradient(params)
    moved = {
        name.split("_")[0]
        for name, layer in found.items()
        if any(leaf.any() for leaf in jax.tree.leaves(layer))
    }
    assert moved & {"cls", "det", "refine", "deltas"} == taught


def test_options_reach_the_loss_and_an_uncertain_image_teaches_nothing(case):
    """An image that is an example of nothing comes without valid proposals (`MilSamples`)."""
    params, batch, _ = case
    batch = batch | {"valid": batch["valid"] & np.array([[True], [False]])}
    both = terms(params, batch)
    tagged = terms(params, {name: value[:1] for name, value in batch.items()})
    for name in ("image", "refine", "tags"):
        np.testing.assert_allclose(both[name], tagged[name] / 2, rtol=1e-5)
    other = terms(params, batch, oicr_rule="official", image_loss="sum")
    assert other["refine"] < both["refine"]  # no branch weight 3
    np.testing.assert_allclose(other["image"], (C + 1) * both["image"], rtol=1e-5)
    assert terms(params, batch, ignore_below=0.9)["refine"] < both["refine"]

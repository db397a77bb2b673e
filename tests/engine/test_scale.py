"""The real trainings: the same on any number of devices, micro-batches and processes; compiled
once."""

import json
import shutil

import jax
import jax.numpy as jnp
import mil_job
import numpy as np
import optax
import processes
import pytest
import tiny_pipeline
from configs import vary

from weaksam_jax.backbones.pixels import network_input
from weaksam_jax.detectors.faster_rcnn import FasterRcnn, FasterRcnnConfig
from weaksam_jax.detectors.faster_rcnn.config import DropConfig
from weaksam_jax.detectors.faster_rcnn.loss import faster_rcnn_loss
from weaksam_jax.engine.mesh import check_batch, data_mesh
from weaksam_jax.engine.step import count_compilations, create_state, make_train_step
from weaksam_jax.engine.train import frozen_loss
from weaksam_jax.errors import BadInput

ONE_SIZE = {"optim": {"pretrain_steps": 0}, "data": {"scales": [[[64, 64]]]}}
# The detection stream's bias shifts all proposals of a class alike, which a softmax over them does
# not see: its gradient is rounding alone, and Adam makes steps of it.
UNSEEN = "det/bias"
LR = mil_job.SMALL.optim.lr


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return mil_job.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """{name: losses and parameters} of one training on 1, 4 and 8 devices and with 4
    micro-batches, and by two processes of two devices."""
    out = tmp_path_factory.mktemp("out")
    cut = {**ONE_SIZE, "optim": {**ONE_SIZE["optim"], "micro_batches": 4}}
    runs = {str(n): {"devices": n, "config": ONE_SIZE} for n in (1, 4, 8)}
    runs["micro-batches"] = {"devices": 1, "config": cut}
    job = processes.write_job(out / "a.json", root=inputs, out=out, runs=runs)
    processes.run(job, devices=8, timeout=800)
    job = processes.write_job(
        out / "b.json", root=inputs, out=out, runs={"processes": {"config": ONE_SIZE}}
    )
    processes.run(job, count=2, devices=2, timeout=800)
    return {path.stem: dict(np.load(path)) for path in out.glob("*.npz")}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["4", "8", "micro-batches", "processes"])
def test_losses_and_parameters_do_not_depend_on_where_a_batch_is_computed(trained, how):
    want, found = trained["1"], trained[how]
    assert want.keys() == found.keys() and len(want["loss"]) == mil_job.SMALL.optim.steps
    np.testing.assert_allclose(found["loss"], want["loss"], rtol=1e-5)
    for name in set(want) - {"loss"}:
        atol = 2 * LR * mil_job.SMALL.optim.steps if name == UNSEEN else 2e-5
        np.testing.assert_allclose(found[name], want[name], atol=atol, rtol=1e-4, err_msg=name)


def test_the_step_is_compiled_once_per_size_also_after_a_resume(inputs, tmp_path, monkeypatch):
    """Two scales of two shapes that have one padded size in common: three of them, in three epochs
    of five batches and after them.

    Of the two phases the first, whose step is compiled sooner.
    """
    scales = (((48, 64), (64, 48)), ((48, 72), (64, 48)))
    optim = {"pretrain_steps": 30, "steps": 0, "batch_size": 3}
    config = vary(mil_job.SMALL, optim=optim, data={"scales": scales})
    mesh, original, events = data_mesh(jax.devices()[:1]), mil_job.ORIGINAL, []
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name.split("/")[-1]))

    def stop(*arguments, **options):
        return original(*arguments[:3], **{**options, "steps": 15})

    monkeypatch.setattr(mil_job, "ORIGINAL", stop)
    with count_compilations() as first:
        mil_job.train(inputs, tmp_path / "mil", mesh, config)
    assert len(first) == len(set(first)) == 3
    monkeypatch.setattr(mil_job, "ORIGINAL", original)
    events.clear()
    with count_compilations() as second:
        mil_job.train(inputs, tmp_path / "mil", mesh, config)
    assert sorted(second) == sorted(first)  # asked for again, but all of them are found on disk
    assert events.count("cache_misses") == 0 and events.count("cache_hits") >= 3


def retrain_batch(images):
    """Random images, and two objects in each."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 30, (images, 8, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(16, 30, (images, 8, 2))], -1)
    return {
        "image": rng.integers(0, 256, (images, 64, 64, 3)).astype(np.uint8),
        "size": np.full((images, 2), 64, np.float32),
        "boxes": boxes.astype(np.float32),
        "labels": rng.integers(0, 2, (images, 8)).astype(np.int32),
        "valid": np.arange(8)[None] < np.full((images, 1), 2),
    }


SMALL_RCNN = vary(
    FasterRcnnConfig(),
    model={"channels": 8, "fc_width": 16},
    loss={"rpn_batch": 16, "pre_nms": 20, "post_nms": 10, "roi_batch": 8},
    optim={"micro_batches": 2},
)


@pytest.mark.slow
def test_retraining_in_micro_batches_is_the_mean_of_them():
    """Against the gradients of the two halves, with the keys of their images, added by hand."""
    detector, batch = FasterRcnn(SMALL_RCNN, 2), retrain_batch(4)
    mesh, tx = data_mesh(jax.devices()[:1]), optax.sgd(1.0)
    params = jax.device_get(detector.init(jax.random.key(0), batch))
    state = create_state(params, tx, jax.random.key(5), mesh)
    step = make_train_step(frozen_loss(detector), tx, mesh, SMALL_RCNN.optim.micro_batches)
    after, metrics = step(state, batch)

    @jax.jit
    @jax.value_and_grad
    def half(params, part, keys):
        part["image"] = network_input(part["image"], part["size"], "mini")
        how = {"keys": keys, "step": jnp.int32(0), "config": SMALL_RCNN.loss}
        return faster_rcnn_loss(detector.network, params, part, **how)[0]

    parts = [{name: value[i : i + 2] for name, value in batch.items()} for i in (0, 2)]
    rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 0)
    keys = jax.random.split(rng, 4)
    found = half(params, parts[0], keys[:2]), half(params, parts[1], keys[2:])
    losses, grads = zip(*found, strict=True)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    want = jax.tree.map(lambda p, a, b: p - (a + b) / 2, params, *grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), after.params, want
    )


def test_micro_batches_whose_normaliser_would_differ_are_refused():
    changed = {"loss": {"drop": DropConfig(normaliser="n_kept")}}
    with pytest.raises(BadInput, match="n_kept; choose loss"):
        vary(SMALL_RCNN, **changed)
    config = vary(SMALL_RCNN, optim={"micro_batches": 1}, **changed)
    assert FasterRcnn(config, 2).class_count == 2


def test_a_batch_that_does_not_divide_is_refused_before_the_work():
    with pytest.raises(BadInput, match="micro_batches 3 do not divide a batch of 8"):
        vary(mil_job.SMALL, optim={"micro_batches": 3})
    with pytest.raises(BadInput, match="do not divide among 3 devices; choose a multiple of 3"):
        check_batch(8, devices=3)
    with pytest.raises(BadInput, match="choose a multiple of 16"):
        check_batch(24, devices=2, micro_batches=8)
    check_batch(24, devices=3, micro_batches=8)


@pytest.mark.slow
def test_the_pipeline_by_two_processes_is_the_pipeline_by_one(tmp_path):
    """Two processes of two devices against one of four: the same parts of every batch. With a DINO,
    whose training `dino_job.py` compares."""
    data = tiny_pipeline.write_tiny(tmp_path / "data")
    one, two = tmp_path / "one", tmp_path / "two"

    def run_pipeline(out, count, devices):
        arguments = ["-m", "experiments.custom", *tiny_pipeline.flags(data, out)]
        arguments += tiny_pipeline.with_dino()
        processes.run(arguments, count, devices, timeout=800)

    run_pipeline(one, 1, 4)
    shutil.copytree(one, two)
    (two / "stages" / "wsod.json").unlink()
    shutil.rmtree(two / "wsod")
    (two / "log.jsonl").unlink()
    run_pipeline(two, 2, 2)
    logs = []
    for out in (one, two):
        lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
        logs.append({(x["stage"], x["step"]): x["loss"] for x in lines if "wsod" in x["stage"]})
    assert logs[0] == pytest.approx(logs[1], rel=1e-4) and len(logs[0]) == 2
    assert "retrain_dino/params.safetensors" in tiny_pipeline.result_bytes(one)
    assert tiny_pipeline.result_bytes(two).keys() == tiny_pipeline.result_bytes(one).keys()
    assert (two / "report" / "index.html").exists()

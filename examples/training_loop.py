"""The training loop written out: `python examples/training_loop.py DATA BOXES [STEPS]`, as
retrain_on_coco.py without checkpoints, logs and signals. Prints the loss of every step."""

import sys

import jax

from weaksam_jax.data.batches import make_batches
from weaksam_jax.data.datasets import open_tags, split_names
from weaksam_jax.data.pseudo_boxes import PseudoSamples
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.detectors.faster_rcnn.config import mini
from weaksam_jax.engine.mesh import data_mesh, put_batch
from weaksam_jax.engine.step import create_state, make_train_step
from weaksam_jax.engine.train import frozen_loss
from weaksam_jax.files import read_json

data, boxes, steps = sys.argv[1], sys.argv[2], int((sys.argv[3:] or [20])[0])
train, config = open_tags(data, split_names(data)["train"]), mini()
detector, mesh = FasterRcnn(config, train.classes), data_mesh()
samples = PseudoSamples(read_json(boxes), train, config.data.scales, augment=config.data.augment)
batches = make_batches(samples, samples.buckets, config.optim.batch_size, seed=0, draw=samples.draw)

init_key, train_key = jax.random.split(jax.random.key(0))
tx = detector.optimizer()
state = create_state(detector.init(init_key, samples.example()), tx, train_key, mesh=mesh)
step = make_train_step(frozen_loss(detector), tx, mesh)
for _ in range(steps):
    batch = next(batches)
    batch.pop("image_id")  # stays on the host: names the images of a bad batch
    state, metrics = step(state, put_batch(batch, mesh))  # donates the old state
    print(f"step {int(state.step)}  loss {float(metrics['loss']):.4f}")

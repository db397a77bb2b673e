"""Faster R-CNN on the boxes of any COCO file: `python examples/retrain_on_coco.py DATA BOXES OUT`.

DATA is a data set (its tags are read, its boxes are not), BOXES a COCO annotation file with boxes
for its training split, such as pgt.json of a run or boxes that you drew. Writes
OUT/params.safetensors, and OUT/detections.json of the test split.
"""

import sys
from pathlib import Path

from weaksam_jax.data.datasets import open_tags, split_names
from weaksam_jax.data.pseudo_boxes import PseudoSamples
from weaksam_jax.data.views import ImageViews
from weaksam_jax.detectors import detect_split, save_detector, train_detector
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.detectors.faster_rcnn.config import mini
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.files import read_json, write_json
from weaksam_jax.settings import change
from weaksam_jax.supervision import saw

data, boxes, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 1000
train, test = (open_tags(data, split_names(data)[role]) for role in ("train", "test"))

config = change(mini(), {"optim.steps": steps})  # light() and recipes.voc07() are larger ones
detector = FasterRcnn(config, train.classes)
samples = PseudoSamples(read_json(boxes), train, config.data.scales, augment=config.data.augment)
params = train_detector(detector, samples, out / "training", mesh=data_mesh(), seed=0)
seen = saw(["boxes"], boxes)  # ["tags"], if they are pseudo boxes of a weakly supervised run
save_detector(out / "params.safetensors", detector, params, seen=seen)

options = {"tta_flip": config.test.tta_flip, "batch_size": config.test.batch_size}
views = ImageViews(test, config.test.tta_scales, **options)
write_json(out / "detections.json", detect_split(detector.predictor(params), views))

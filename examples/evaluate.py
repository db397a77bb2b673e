"""How good detections are: `python examples/evaluate.py DATA DETECTIONS`, a data set with boxes and
COCO results on its test split. Prints AP50 by VOC's rules and COCO's AP, in percent."""

import sys

from weaksam_jax.data.datasets import open_truth, split_names
from weaksam_jax.data.detections import read_detections
from weaksam_jax.evaluate import coco_ap, voc_ap

data, detections = sys.argv[1:]
truth = open_truth(data, split_names(data)["test"])
found = read_detections(detections, truth)
print(f"VOC07 AP50  {voc_ap(found, truth, rule='07')['ap50']:.1f}")
print(f"VOC12 AP50  {voc_ap(found, truth, rule='12')['ap50']:.1f}")
print(f"COCO AP     {coco_ap(found, truth)['ap']:.1f}")

"""A finished run, opened to look at new photos."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pipeline import clues, detectors
from experiments.pipeline.detectors import RetrainConfig
from experiments.pipeline.photos import Photo
from experiments.pipeline.run import open_run
from weaksam_jax.boxes import from_xywh
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json
from weaksam_jax.report.draw import draw_detections, save_png


@dataclass(frozen=True)
class Predictor:
    """photos: an empty split of the run's classes. network: the clue network, when tags weigh the
    scores; sam: the network of masks, when they are asked for."""

    config: RetrainConfig
    params: dict
    photos: TagSplit
    network: Any
    sam: Any

    def detect(self, split: TagSplit, threshold: float) -> dict[int, list[dict]]:
        """COCO results of at least that score, by image id."""
        logits = None if self.network is None else clues.fresh_logits(self.network, split)
        results = detectors.detect_retrainer(self.params, split, self.config, logits, False)
        found: dict[int, list[dict]] = {record.image_id: [] for record in split.records}
        for one in results:
            if one["score"] >= threshold:
                found[one["image_id"]].append(one)
        return found

    def finish(self, photo: Photo, found: list[dict], out: Path) -> list[dict]:
        """The results of one photo with masks; writes its picture."""
        image = load_image(photo.record.path)
        if self.sam is not None and found:
            found = self._with_masks(image, found)
        save_png(out / photo.picture, draw_detections(image, found, self.photos))
        return found

    def _with_masks(self, image: np.ndarray, found: list[Mapping]) -> list[dict]:
        """With `segmentation` (RLE): SAM prompted by each box."""
        from bridge.proposals.packed_masks import encode_rle
        from bridge.sam.pseudo_masks import MaskSettings, box_masks

        boxes = from_xywh(np.asarray([one["bbox"] for one in found], np.float32))
        packed, _, _ = box_masks(self.sam, image, boxes, MaskSettings(empty="box"))
        height, width = image.shape[:2]
        rles = [counts.decode() for counts in encode_rle(packed, width)]
        return [
            {**one, "segmentation": {"size": [height, width], "counts": counts}}
            for one, counts in zip(found, rles, strict=True)
        ]


def open_predictor(root: Path, masks: bool) -> Predictor:
    """The retrained detector of a run; `BadInput` when the run has none yet."""
    run = open_run(root)
    weights, pgt = run.folder.weights("retrain"), run.folder.pseudo_boxes()
    for path in (weights, pgt, run.folder.marker("retrain", "json")):
        if not path.exists():
            problem = f"has no finished stage retrain ({path.relative_to(root)} is missing)"
            raise BadInput(root, problem, "finish it with the command that began it")
    config, categories = run.config.retrain, read_json(pgt)["categories"]
    names = tuple(one["name"] for one in categories)
    photos = TagSplit("photos", "predict", names, tuple(one["id"] for one in categories), ())
    params = detectors.load_retrainer(weights, config, len(names))
    network = clues.load(run, photos) if detectors.tag_power_of(config) else None
    return Predictor(config, params, photos, network, _load_sam(run.config.sam) if masks else None)


def _load_sam(name: str):
    from bridge.sam.load import load_sam

    return load_sam(name)

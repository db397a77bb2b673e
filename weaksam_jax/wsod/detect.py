"""Detections of the MIL detector on a split, averaged over test-time views."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from weaksam_jax.boxes import clip, decode, to_xywh
from weaksam_jax.data.records import TagSplit
from weaksam_jax.losses.mil import wsddn_scores
from weaksam_jax.ops.nms import multiclass_nms
from weaksam_jax.wsod.features import all_views, frozen_features
from weaksam_jax.wsod.network import build_model, network_input
from weaksam_jax.wsod.samples import MilSamples, restore_boxes
from weaksam_jax.wsod.settings import WsodSettings


def detect_wsod(
    params: dict,
    split: TagSplit,
    proposals_root: str | Path,
    settings: WsodSettings,
    folder: str | Path,
    backbone: Any = None,
    clues_root: str | Path | None = None,
) -> list[dict]:
    """COCO results of every image of `split` (its tags are not read; stored clues may know them).

    Scores are the mean softmax of the refinement branches ("wsddn": the product of its two streams)
    and boxes the mean decoded regression ("oicr", "wsddn": the proposals), both averaged over all
    views; scores times `clue_evidence` to the power of `clue_power`; then class-wise NMS and the
    best `max_detections` of an image, best first, the best one of every class among them.
    """
    samples = MilSamples(split, proposals_root, settings, clues_root)
    samples.features = frozen_features(split, settings, Path(folder), backbone)
    model = build_model(settings, len(split.classes))
    params = jax.device_put(params)
    infer = jax.jit(functools.partial(infer_view, model, settings))
    select = jax.jit(
        jax.vmap(
            lambda boxes, scores, valid: multiclass_nms(
                boxes, scores, valid, 0.0, settings.nms, settings.max_detections, 200, True
            )
        )
    )
    results: dict[int, list[dict]] = {}
    views, size = all_views(settings), settings.test_batch
    with tqdm(total=len(split.records), desc=f"detect {split.split}", unit="images") as bar:
        for group in sorted(set(samples.groups)):
            members = [i for i, own in enumerate(samples.groups) if own == group]
            for start in range(0, len(members), size):
                chosen = members[start : start + size]
                found = _detect(infer, select, params, samples, chosen, views, size)
                for index, detections in zip(chosen, found, strict=True):
                    record = split.records[index]
                    results[record.image_id] = _as_coco(detections, record, split)
                bar.update(len(chosen))
    return [one for record in split.records for one in results[record.image_id]]


def infer_view(model, settings, params, batch) -> tuple[jax.Array, jax.Array]:
    """Scores `[B, N, C]` and boxes `[B, N, C, 4]` (input pixels) of one view."""
    images, inside = network_input(settings, batch)
    _, outputs = model.apply({"params": params}, images, inside, batch["boxes"], batch["prior"])
    scores = jax.nn.softmax(outputs.refine).mean(1)[..., 1:]
    if settings.method == "wsddn":
        both = jax.vmap(wsddn_scores)(outputs.cls, outputs.det, batch["valid"])
        scores = both[..., -scores.shape[-1] :]
    boxes = jnp.broadcast_to(batch["boxes"][:, :, None], (*scores.shape, 4))
    if settings.method == "mist":
        boxes = decode(outputs.deltas.mean(1)[:, :, 1:], boxes)
    return scores, boxes


def _detect(infer, select, params, samples, chosen, views, size) -> list[tuple]:
    """(boxes, scores, labels, valid) of each chosen image, over all views."""
    padded = list(chosen) + [chosen[-1]] * (size - len(chosen))
    scores, boxes = 0.0, 0.0
    most = samples.settings.max_proposals
    for view in views:
        shown = [samples.show(i, slice(most), view) for i in padded]
        batch = {name: np.stack([one[name] for one in shown]) for name in shown[0]}
        view_scores, view_boxes = jax.device_get(infer(params, batch))
        records = [samples.split.records[i] for i in padded]
        restored = [
            clip(restore_boxes(b, r, one["size"], view.mirrored), r.width, r.height)
            for b, r, one in zip(view_boxes, records, shown, strict=True)
        ]
        scores, boxes = scores + view_scores / len(views), boxes + np.stack(restored) / len(views)
    scores = scores * np.stack([samples.clue_factors(i) for i in padded])
    found = jax.device_get(select(boxes, scores, batch["valid"]))
    return [tuple(part[i] for part in found) for i in range(len(chosen))]


def _as_coco(detections: tuple, record, split: TagSplit) -> list[dict]:
    boxes, scores, labels, valid = detections
    return [
        {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "category_id": split.category_ids[int(label)],
            "bbox": [round(float(v), 2) for v in to_xywh(box)],
            "score": round(float(score), 6),
        }
        for box, score, label, ok in zip(boxes, scores, labels, valid, strict=True)
        if ok and box[2] - box[0] > 0 and box[3] - box[1] > 0
    ]

"""Detections of the MIL detector on a split, averaged over test-time views."""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from weaksam_jax.boxes import decode, to_xywh
from weaksam_jax.data.records import TagSplit
from weaksam_jax.data.views import View, restore_boxes, views_of
from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.detectors.mil.features import frozen_features
from weaksam_jax.detectors.mil.loss import wsddn_scores
from weaksam_jax.detectors.mil.network import build_model, network_input
from weaksam_jax.detectors.mil.samples import MilSamples
from weaksam_jax.engine.journal import Journal
from weaksam_jax.errors import BadInput
from weaksam_jax.ops.nms import multiclass_nms

THREADS = 4  # that resize the images of a view


def detect_wsod(
    params: dict,
    split: TagSplit,
    proposals_root: str | Path,
    settings: WsodSettings,
    folder: str | Path,
    backbone: Any = None,
    clues_root: str | Path | None = None,
    journal: Journal | None = None,
    weights: str | Path = "weights",
) -> list[dict]:
    """COCO results of every image of `split` (its tags are not read; stored clues may know them).

    Scores are the mean softmax of the refinement branches ("wsddn": the product of its two streams)
    and boxes the decoded mean of their regressions ("oicr", "wsddn": the proposals), cut to the
    image; both are averaged over all views, boxes in pixels of the original image; scores times
    `clue_evidence` to the power of `clue_power`; then class-wise NMS and the best `max_detections`
    of an image, best first (`every_class`: the best one of every class among them; the release
    keeps ties with the last of them too).

    journal: images that it holds are not detected again. Raises `BadInput`, naming `weights`, when
    the parameters are not of this network.
    """
    scales = settings.test_scales or settings.scales
    samples = MilSamples(split, proposals_root, settings, clues_root, scales)
    tell_cut(samples)
    samples.features = frozen_features(split, settings, Path(folder), backbone, scales)
    model = build_model(settings, len(split.classes))
    check_params(params, model, samples, weights)
    detector = _Detector(model, jax.device_put(params), samples)
    results = {} if journal is None else dict(journal.done)
    todo = [i for i, one in enumerate(split.records) if one.image_id not in results]
    with tqdm(total=len(todo), desc=f"detect {split.split}", unit="images") as bar:
        for group in sorted(set(samples.groups)):
            members = [i for i in todo if samples.groups[i] == group]
            for start in range(0, len(members), settings.test_batch):
                found = detector(members[start : start + settings.test_batch])
                results |= found
                if journal is not None:
                    journal.add(found)
                bar.update(len(found))
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


class _Detector:
    """Indices of at most `test_batch` images of one canvas -> {image id: COCO results}.

    A view is one compiled call that adds to sums on the device; it has one program a canvas, for an
    image and its mirror share it. Nothing comes back to the host before the NMS.
    """

    def __init__(self, model, params, samples: MilSamples):
        self._params, self._samples, settings = params, samples, samples.settings
        self._views = views_of(samples.scales, settings.test_mirrored)

        def add_view(params, batch, sums):
            scores, boxes = infer_view(model, settings, params, batch)
            place = batch["size"], batch["original"], batch["mirrored"]
            return sums[0] + scores, sums[1] + jax.vmap(restore_boxes)(boxes, *place)

        def select(sums, factors, valid):
            scores, boxes = (one / len(self._views) for one in sums)
            best = functools.partial(
                multiclass_nms,
                score_threshold=0.0,
                iou_threshold=settings.nms,
                max_output=settings.max_detections,
                every_class=settings.every_class,
            )
            return jax.vmap(best)(boxes, scores * factors, valid)

        self._add_view, self._select = jax.jit(add_view, donate_argnums=2), jax.jit(select)

    def __call__(self, chosen: list[int]) -> dict[int, list[dict]]:
        samples, split = self._samples, self._samples.split
        padded = chosen + [chosen[-1]] * (samples.settings.test_batch - len(chosen))
        shape = len(padded), samples.padded, len(split.classes)
        sums = jnp.zeros(shape), jnp.zeros((*shape, 4))
        with ThreadPoolExecutor(THREADS) as pool:
            images = [None] * len(padded)
            if samples.features is None:
                images = list(pool.map(samples.image, padded))
            for view in self._views:
                batch = self._batch(pool, padded, images, view)
                sums = self._add_view(self._params, batch, sums)
        factors = np.stack([samples.clue_factors(i) for i in padded])
        found = jax.device_get(self._select(sums, factors, batch["valid"]))
        return {
            split.records[index].image_id: _as_coco([part[i] for part in found], index, split)
            for i, index in enumerate(chosen)
        }

    def _batch(self, pool, padded: list[int], images: list, view: View) -> dict[str, np.ndarray]:
        samples = self._samples

        def show(index: int, image) -> dict:
            return samples.show(index, slice(samples.padded), view, image=image)

        shown = list(pool.map(show, padded, images))
        batch = {name: np.stack([one[name] for one in shown]) for name in shown[0]}
        records = [samples.split.records[i] for i in padded]
        batch["original"] = np.asarray([[r.height, r.width] for r in records], np.float32)
        batch["mirrored"] = np.full(len(padded), view.mirrored)
        return batch


def check_params(params: dict, model, samples: MilSamples, path: str | Path) -> None:
    """`BadInput` (naming `path`) unless `params` have the names and shapes of the network's own."""
    shown = samples.show(0, slice(samples.padded), View(0, False))
    batch = {name: value[None] for name, value in shown.items()}

    def init(batch):
        images, inside = network_input(samples.settings, batch)
        return model.init(jax.random.key(0), images, inside, batch["boxes"], batch["prior"])

    wanted = flax.traverse_util.flatten_dict(jax.eval_shape(init, batch)["params"], sep="/")
    given = flax.traverse_util.flatten_dict(params, sep="/")
    classes = len(samples.split.classes)
    need = f"{samples.split.dataset} ({classes} classes) and these settings"
    hint = "give the preset and settings that it was trained with, on data of the same classes"
    for name in sorted(wanted.keys() - given.keys()):
        raise BadInput(path, f"has no {name}, which {need} need", hint)
    for name in sorted(given.keys() - wanted.keys()):
        raise BadInput(path, f"has {name}, for which {need} have no place", hint)
    for name, shape in sorted((name, one.shape) for name, one in wanted.items()):
        if shape != given[name].shape:
            problem = f"{name} is {list(given[name].shape)}, {need} need {list(shape)}"
            raise BadInput(path, problem, hint)


def tell_cut(samples: MilSamples) -> None:
    """A line on stderr when images have more proposals than are looked at."""
    counts = np.asarray([len(boxes) for boxes in samples.boxes])
    over = counts > samples.padded
    if over.any():
        left_out = int((counts - samples.padded)[over].sum())
        problem = f"{over.sum()} of {len(counts)} images have more than {samples.padded} proposals"
        hint = f"raise max_proposals to {counts.max()} to look at all"
        tqdm.write(f"warning: {problem}, {left_out} are left out; {hint}", file=sys.stderr)


def _as_coco(detections: list, index: int, split: TagSplit) -> list[dict]:
    boxes, scores, labels, valid = detections
    record = split.records[index]
    return [
        {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "category_id": split.category_ids[int(label)],
            "bbox": [round(float(v), 2) for v in to_xywh(box)],
            "score": float(f"{score:.9g}"),  # all of float32: fewer digits make ties
        }
        for box, score, label, ok in zip(boxes, scores, labels, valid, strict=True)
        if ok and box[2] - box[0] > 0 and box[3] - box[1] > 0
    ]

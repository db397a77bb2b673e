"""Detection on the devices of one process, and by several: `python detect_job.py FOLDER`.

A single process first compares, for every detector, all of its devices with one of them. Then the
images of `write_rectangles` are detected on, by all processes, into FOLDER/found.json.
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from small_faster_rcnn import small, write_rectangles

from weaksam_jax.cli import entry_point
from weaksam_jax.data.views import ImageViews
from weaksam_jax.detectors import DETECTORS, detect_file, detect_split
from weaksam_jax.engine import distributed
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.step import count_compilations
from weaksam_jax.files import write_json

IMAGES = 3  # not a multiple of the devices


def views_of(every, kind):
    """Three images plain and mirrored, two of which do not fill the padded size."""
    whole = every.seen_at_test(every.batch_of(), kind)
    batch = {name: np.concatenate([one, one[1:]]) for name, one in whole.items()}
    if kind == "mil":
        batch["clue_factor"] = np.ones((IMAGES, every.BOXES, len(every.NAMES)), np.float32)
    shared = batch | {"original": 2 * batch["size"]}
    return [shared | {"flipped": np.full(IMAGES, flip)} for flip in (False, True)]


def compare(kind):
    """All devices against one; a program for the padded size, not for a view or a call."""
    sys.path.append(str(Path(__file__).parents[1] / "detectors"))
    import test_detectors as every

    detector, params, views = every.detector_of(kind), every.params_of(kind), views_of(every, kind)
    alone = detector.predictor(params, data_mesh(jax.devices()[:1]))(views)
    predictor = detector.predictor(params)
    with count_compilations("add_view" if detector.on_proposals else "predict") as compiled:
        found = predictor(views)
        again = predictor(views[::-1])
    assert len(compiled) == 1, compiled
    assert len(found) == len(again) == len(alone) == IMAGES
    for own, other in zip(found, alone, strict=True):
        assert len(own.boxes) > 0
        np.testing.assert_array_equal(own.labels, other.labels)
        np.testing.assert_allclose(own.scores, other.scores, rtol=1e-5)
        np.testing.assert_allclose(own.boxes, other.boxes, rtol=1e-5, atol=1e-3)
    print(kind, len(jax.devices()))


def views_of_rectangles(folder):
    """The detector, random parameters, the images."""
    detector, split = small(), write_rectangles(folder)[0]
    batch = {"image": np.zeros((1, 64, 64, 3), np.uint8)}
    rng, fresh = np.random.default_rng(0), detector.init(jax.random.key(0), batch)
    shaken = jax.tree.map(lambda x: x + rng.normal(0, 0.05, x.shape).astype(np.float32), fresh)
    return detector, shaken, ImageViews(split, detector.config.test.tta_scales, tta_flip=True,
                                        batch_size=detector.config.test.batch_size)  # fmt: skip


def main(argv):
    out, data = Path(sys.argv[1]), Path(tempfile.mkdtemp())
    distributed.start()
    if distributed.process()[1] == 1:
        for kind in DETECTORS:
            compare(kind)
    detector, params, views = views_of_rectangles(data)
    predictor, files = detector.predictor(params), {"journal": out / "unfinished.jsonl", "key": "k"}
    print(detect_file(out / "found.json", predictor, views, **files))
    if distributed.process()[1] == 1:
        write_json(out / "at once.json", detect_split(predictor, views, progress=False))


if __name__ == "__main__":
    sys.exit(entry_point(main))

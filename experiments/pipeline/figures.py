"""The figures of every finished stage, measured on what it wrote.

Nothing here trains, so they can be measured again when the truth alone has changed.
"""

from experiments.pipeline import metrics
from experiments.pipeline.run import Run
from weaksam_jax.data.detections import read_detections
from weaksam_jax.files import read_json


def data(run: Run) -> dict:
    """Numbers of the data set; reads every box once."""
    has_truth = {role: truth is not None for role, truth in run.data.truths.items()}
    train, test = run.data.splits["train"], run.data.splits["test"]
    return {
        "dataset": {
            "name": "mini" if run.options.data == "mini" else train.dataset,
            "train_images": len(train.records),
            "test_images": len(test.records),
            "negatives": sum(not record.tags for record in train.records),
            "classes": len(train.classes),
            "truth": has_truth,
        }
    }


def proposals(run: Run) -> dict:
    """Recall, and what the stored logits say of the tags of the test split."""
    from experiments.pipeline import clues

    found = {}
    if run.exports:
        found["clues"] = clues.tag_map(run.clues, run.data.splits["test"])
    found["proposals"] = metrics.proposals(run.proposals, run.data.splits, run.data.truths)
    return found


def wsod(run: Run) -> dict:
    """AP and CorLoc of the stored detections, and of thresholded maps."""
    truths = {role: truth for role, truth in run.data.truths.items() if truth is not None}
    found = {
        role: read_detections(run.folder.detections("wsod", role), truth)
        for role, truth in truths.items()
    }
    return metrics.wsod(
        found, run.data.splits, run.data.truths, clue_root=run.clues, rule=run.config.ap50
    )


def pgt(run: Run) -> dict:
    """Precision and recall of the stored pseudo boxes of both rules."""
    made = {name: read_json(run.folder.pseudo_boxes(name)) for name in ("pgt", "top1")}
    return metrics.pgt(made, run.data.truths["train"])


def retrained(name: str, run: Run) -> dict:
    """AP of the stored detections. name: the stage."""
    truth = run.data.truths["test"]
    if truth is None:
        return {}
    found = read_detections(run.folder.detections(name, "test"), truth)
    return {name: metrics.average_precisions(found, truth, rule=run.config.ap50)}


def masks(run: Run) -> dict:
    """Number and quality of the stored masks."""
    return metrics.masks(read_json(run.folder.pseudo_masks), run.data.truths["train"])

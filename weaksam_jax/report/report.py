"""The run's report: one HTML file that needs no network."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from weaksam_jax.data.records import TagSplit, TruthRecord, TruthSplit
from weaksam_jax.files import write_text
from weaksam_jax.report import curves, panels, tables
from weaksam_jax.report.artefacts import FILES, Artefacts, read_artefacts
from weaksam_jax.report.choose import judge, showcase, worst
from weaksam_jax.report.draw import class_colors

TRAIN_IMAGES, TEST_IMAGES, WORST_IMAGES = 12, 8, 5
MOST_BYTES = 7_000_000  # of all pictures together as base64
_QUALITIES = (85, 75, 60, 40, 20)
# What makes each part of the report: the file's name here, the stage, the words.
_PARTS = {
    "mil": ("wsod", "detections of the MIL detector"),
    "pgt": ("pgt", "adaptive pseudo boxes"),
    "top1": ("pgt", "top-1 pseudo boxes"),
    "retrain": ("retrain", "detections of the retrained detector"),
    "masks": ("masks", "pseudo masks"),
}


def write_report(
    run: Path,
    train: TagSplit,
    test: TagSplit,
    train_truth: TruthSplit | None,
    test_truth: TruthSplit | None,
) -> Path:
    """Writes `run/report/index.html` (at most 8 MB) and returns its path.

    What a switched-off stage or a data set without boxes leaves out, the page says. The same run
    folder gives the same bytes. Raises `BadInput` for a broken image or file of the run.
    """
    artefacts = read_artefacts(Path(run), train, test)
    train_truths, test_truths = panels.truth_by_id(train_truth), panels.truth_by_id(test_truth)
    groups = {
        "train_rows": _train_rows(artefacts, train_truths),
        "test_rows": _test_rows(artefacts, test_truths),
        "worst_train": _worst_train(artefacts, train_truths),
        "worst_test": _worst_test(artefacts, test_truths),
    }
    context = _facts(artefacts, train_truth, test_truth) | _curves(artefacts)
    page = _template().render(**context, **_with_pictures(groups))
    path = Path(run) / "report" / "index.html"
    write_text(path, page)
    return path


def _train_rows(artefacts: Artefacts, truths: dict[int, TruthRecord]) -> list[panels.Row]:
    chosen = showcase(artefacts.train.records, TRAIN_IMAGES)
    return panels.rows(artefacts, chosen, truths, panels.train_row)


def _test_rows(artefacts: Artefacts, truths: dict[int, TruthRecord]) -> list[panels.Row]:
    if artefacts.detections is None:
        return []
    chosen = showcase(artefacts.test.records, TEST_IMAGES)
    return panels.rows(artefacts, chosen, truths, panels.test_row)


def _worst_train(artefacts: Artefacts, truths: dict[int, TruthRecord]) -> list[panels.Row]:
    """Training images in which the adaptive pseudo boxes miss most objects."""
    found = artefacts.found["pgt"]
    if found is None or not truths:
        return []

    def faults(record) -> int:
        return judge(found[record.image_id], truths[record.image_id]).missed

    chosen = worst(artefacts.train.records, faults, WORST_IMAGES)
    return panels.rows(artefacts, chosen, truths, panels.train_row)


def _worst_test(artefacts: Artefacts, truths: dict[int, TruthRecord]) -> list[panels.Row]:
    """Test images with most wrong and missed detections of the last detector."""
    found = artefacts.detections
    if found is None or not truths:
        return []

    def faults(record) -> int:
        shown = found[record.image_id].above(panels.DETECTION_SCORE)
        verdict = judge(shown, truths[record.image_id])
        return verdict.missed + verdict.wrong

    chosen = worst(artefacts.test.records, faults, WORST_IMAGES)
    return panels.rows(artefacts, chosen, truths, panels.test_row)


def _facts(artefacts: Artefacts, train_truth, test_truth) -> dict:
    """Header, tables, and what this run does not have."""
    metrics, settings, train = artefacts.metrics, artefacts.settings, artefacts.train
    known, others = tables.results(metrics)
    classes = [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color)}
        for name, color in zip(train.classes, class_colors(len(train.classes)), strict=True)
    ]
    return {
        "dataset": metrics.get("dataset", {}).get("name", train.dataset),
        "train": train,
        "test": artefacts.test,
        "negatives": sum(not record.tags for record in train.records),
        "classes": classes,
        "preset": settings.get("preset"),
        "seed": metrics.get("seed", settings.get("seed")),
        "versions": metrics.get("versions", {}),
        "settings": json.dumps(settings, indent=2, ensure_ascii=False) if settings else None,
        "known": known,
        "others": others,
        "seconds": tables.seconds(metrics),
        "by_class": tables.by_class(artefacts, train_truth),
        "missing": _missing(artefacts),
        "has": {name: artefacts.found[name] is not None for name in FILES},
        "train_truth": train_truth is not None,
        "test_truth": test_truth is not None,
        "score": panels.DETECTION_SCORE,
        "most_proposals": panels.MOST_PROPOSALS,
    }


def _missing(artefacts: Artefacts) -> list[tuple[str, str, str]]:
    """(words, file, stage) of what this run folder does not have."""
    found = [
        (words, FILES[name][0], stage)
        for name, (stage, words) in _PARTS.items()
        if artefacts.found[name] is None
    ]
    split = artefacts.train.split
    if not (artefacts.proposal_root / split).exists():
        found.insert(0, ("proposals", f"proposals/{split}", "proposals"))
    if not (artefacts.run / "clues" / split).exists():
        found.insert(0, ("class maps and points", f"clues/{split}", "proposals"))
    return found


def _curves(artefacts: Artefacts) -> dict:
    losses = [
        {
            "stage": stage,
            "svg": Markup(curves.loss_curve(stage, lines)),
            "steps": lines[-1]["step"],
            "speed": _speed(lines),
        }
        for stage, lines in artefacts.log.items()
    ]
    figures = {"recall": curves.recall_curve, "pgt_bars": curves.pgt_bars}
    drawn = {name: draw(artefacts.metrics) for name, draw in figures.items()}
    return {"losses": losses} | {
        k: None if svg is None else Markup(svg) for k, svg in drawn.items()
    }


def _speed(lines: Sequence[dict]) -> float | None:
    """Median images a second."""
    speeds = [line["images_per_s"] for line in lines if "images_per_s" in line]
    return float(np.median(speeds)) if speeds else None


def _with_pictures(groups: dict[str, list[panels.Row]]) -> dict[str, list[dict]]:
    """The rows as plain values, pictures as data URIs, at the best quality that fits."""
    images = [
        panel.image
        for rows in groups.values()
        for row in rows
        for panel in row.panels
        if panel.image is not None
    ]
    encoded = iter(_fitting(images))
    return {name: [_plain(row, encoded) for row in rows] for name, rows in groups.items()}


def _plain(row: panels.Row, encoded) -> dict:
    record = row.record
    shown = [
        {
            "name": panel.name,
            "note": panel.note,
            "size": None if panel.image is None else panel.image.shape[1::-1],
            "uri": None if panel.image is None else Markup(next(encoded)),
        }
        for panel in row.panels
    ]
    size = f"{record.width} × {record.height}"
    return {"file": record.file_name, "size": size, "tags": record.tags, "note": row.note} | {
        "panels": shown
    }


def _fitting(images: list[np.ndarray]) -> list[str]:
    """JPEG data URIs of at most `MOST_BYTES` together, if any quality of `_QUALITIES` does it."""
    uris: list[str] = []
    for quality in _QUALITIES:
        uris = [_uri(image, quality) for image in images]
        if sum(map(len, uris)) <= MOST_BYTES:
            break
    return uris


def _uri(image: np.ndarray, quality: int) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html")

"""The run's report: one HTML file that needs no network."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from weaksam_jax.data.records import TagSplit, TruthRecord, TruthSplit
from weaksam_jax.files import write_text
from weaksam_jax.report import curves, panels, tables
from weaksam_jax.report.artefacts import Artefacts, RunFiles, part, parts, read_artefacts
from weaksam_jax.report.choose import judge, showcase, worst
from weaksam_jax.report.draw import class_colors

TRAIN_IMAGES, TEST_IMAGES, WORST_IMAGES = 12, 8, 5
MOST_BYTES = 7_000_000  # of all pictures together as base64
_QUALITIES = (85, 75, 60, 40, 20)


def write_report(
    files: RunFiles, splits: Mapping[str, TagSplit], truths: Mapping[str, TruthSplit | None]
) -> Path:
    """Writes `files.page` (at most 8 MB) and returns its path.

    splits, truths: "train" and "test". What a switched-off stage or a data set without boxes leaves
    out, the page says. The same run gives the same bytes. Raises `BadInput` for a broken image or
    file of the run.
    """
    artefacts = read_artefacts(files, splits["train"], splits["test"])
    train, test = (panels.truth_by_id(truths[role]) for role in ("train", "test"))
    rows = {
        "train_rows": _train_rows(artefacts, train),
        "test_rows": _test_rows(artefacts, test),
        "worst_train": _worst_train(artefacts, train),
        "worst_test": _worst_test(artefacts, test),
    }
    context = _facts(artefacts, truths) | _curves(artefacts)
    write_text(files.page, _template().render(**context, **_with_pictures(rows)))
    return files.page


def _train_rows(artefacts: Artefacts, truths: dict[int, TruthRecord]) -> list[panels.Row]:
    chosen = showcase(artefacts.train.records, TRAIN_IMAGES)
    return panels.rows(artefacts, chosen, truths, make=panels.train_row)


def _test_rows(artefacts: Artefacts, truths: dict[int, TruthRecord]) -> list[panels.Row]:
    if artefacts.detections is None:
        return []
    chosen = showcase(artefacts.test.records, TEST_IMAGES)
    return panels.rows(artefacts, chosen, truths, make=panels.test_row)


def _worst_train(artefacts: Artefacts, truths: dict[int, TruthRecord]) -> list[panels.Row]:
    """Training images in which the adaptive pseudo boxes miss most objects."""
    found = artefacts.found["pgt"]
    if found is None or not truths:
        return []

    def faults(record) -> int:
        return judge(found[record.image_id], truths[record.image_id]).missed

    chosen = worst(artefacts.train.records, faults, WORST_IMAGES)
    return panels.rows(artefacts, chosen, truths, make=panels.train_row)


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
    return panels.rows(artefacts, chosen, truths, make=panels.test_row)


def _facts(artefacts: Artefacts, truths: Mapping[str, TruthSplit | None]) -> dict:
    """Header, tables, and what this run does not have."""
    metrics, settings, train = artefacts.metrics, artefacts.settings, artefacts.train
    known, others = tables.results(metrics)
    return {
        "dataset": part(metrics, "dataset").get("name", train.dataset),
        "train": train,
        "test": artefacts.test,
        "negatives": sum(not record.tags for record in train.records),
        "classes": _classes(train),
        "preset": settings.get("preset"),
        "seed": metrics.get("seed", settings.get("seed")),
        "versions": part(metrics, "versions"),
        "settings": json.dumps(settings, indent=2, ensure_ascii=False) if settings else None,
        "ledger": tables.ledger(metrics),
        "known": known,
        "others": others,
        "seconds": tables.seconds(metrics),
        "by_class": tables.by_class(artefacts, truths["train"]),
        "missing": _missing(artefacts),
        "has": {name: found is not None for name, found in artefacts.found.items()},
        "train_truth": truths["train"] is not None,
        "test_truth": truths["test"] is not None,
        "score": panels.DETECTION_SCORE,
        "most_proposals": panels.MOST_PROPOSALS,
    }


def _classes(train: TagSplit) -> list[dict]:
    """Name and colour of every class."""
    colors = class_colors(len(train.classes))
    return [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color)}
        for name, color in zip(train.classes, colors, strict=True)
    ]


def _missing(artefacts: Artefacts) -> list[tuple[str, str, str]]:
    """(words, file, stage) of what this run does not have."""
    files, split = artefacts.files, artefacts.train.split
    stores = {"class maps and points": files.clues / split, "proposals": files.proposals / split}
    lost = [
        (words, files.shown(path), "proposals")
        for words, path in stores.items()
        if not path.exists()
    ]
    return lost + [
        (part.words, files.shown(files.path(name)), part.stage)
        for name, part in parts(files).items()
        if artefacts.found[name] is None
    ]


def _curves(artefacts: Artefacts) -> dict:
    """The SVGs of the losses, of recall and of pseudo boxes; None where there is no figure."""
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
    svgs = {name: None if svg is None else Markup(svg) for name, svg in drawn.items()}
    return {"losses": losses, **svgs}


def _speed(lines: Sequence[dict]) -> float | None:
    """Median images per second."""
    speeds = [line["images_per_s"] for line in lines if "images_per_s" in line]
    return float(np.median(speeds)) if speeds else None


def _with_pictures(groups: dict[str, list[panels.Row]]) -> dict[str, list[dict]]:
    """The rows as plain values, pictures as data URIs, at the best quality that fits."""
    shown = [panel for rows in groups.values() for row in rows for panel in row.panels]
    encoded = iter(_fitting([panel.image for panel in shown if panel.image is not None]))
    return {name: [_plain(row, encoded) for row in rows] for name, rows in groups.items()}


def _plain(row: panels.Row, encoded: Iterator[str]) -> dict:
    """A row for the template; takes its pictures from `encoded`."""
    record = row.record
    return {
        "file": record.file_name,
        "size": f"{record.width} × {record.height}",
        "tags": record.tags,
        "note": row.note,
        "panels": [_plain_panel(panel, encoded) for panel in row.panels],
    }


def _plain_panel(panel: panels.Panel, encoded: Iterator[str]) -> dict:
    """A panel for the template; its picture is the next of `encoded`, if it has one."""
    words = {"name": panel.name, "note": panel.note}
    if panel.image is None:
        return {**words, "size": None, "uri": None}
    return {**words, "size": panel.image.shape[1::-1], "uri": Markup(next(encoded))}


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

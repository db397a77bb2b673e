"""The report's rows as one PNG, for README and quick looks."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.report import panels
from weaksam_jax.report.artefacts import RunFiles, read_artefacts
from weaksam_jax.report.choose import showcase
from weaksam_jax.report.contact_sheet import contact_sheet
from weaksam_jax.report.draw import label_font, save_png


def save_gallery(
    files: RunFiles, train: TagSplit, truth: TruthSplit | None, out: Path, images: int = 4
) -> Path:
    """Writes `images` training images, one row per image, with the column names above, to a PNG.

    The same run gives the same bytes. Returns `out`.
    """
    artefacts = read_artefacts(files, train, None)
    truths = panels.truth_by_id(truth)
    chosen = showcase(train.records, images)
    rows = panels.rows(artefacts, chosen, truths, make=panels.train_row)
    names = list(dict.fromkeys(panel.name for row in rows for panel in row.panels))
    cells = [_cell(row, name) for row in rows for name in names]
    sheet = contact_sheet(cells, len(names), cell=_size(cells))
    titled = _titles(sheet, names)
    save_png(out, titled)
    return Path(out)


def _cell(row: panels.Row, name: str) -> np.ndarray:
    """The row's picture of a column; white where it has none."""
    for panel in row.panels:
        if panel.name == name and panel.image is not None:
            return panel.image
    return np.full_like(row.panels[0].image, 255)


def _size(cells: list[np.ndarray]) -> tuple[int, int]:
    return max(c.shape[1] for c in cells), max(c.shape[0] for c in cells)


def _titles(sheet: np.ndarray, names: list[str], height: int = 34) -> np.ndarray:
    """The sheet with a line of column names above it."""
    canvas = Image.new("RGB", (sheet.shape[1], sheet.shape[0] + height), "white")
    canvas.paste(Image.fromarray(sheet), (0, height))
    pen, font, width = ImageDraw.Draw(canvas), label_font(20), sheet.shape[1] / len(names)
    for index, name in enumerate(names):
        pen.text((round((index + 0.5) * width), height - 6), name, "black", font, anchor="ms")
    return np.asarray(canvas)

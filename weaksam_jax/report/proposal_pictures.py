"""Pictures of proposals: boxes and prompt points of one photo, and likeness of RoI features."""

import io
import math
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from weaksam_jax.data.store import SOURCES, Proposals
from weaksam_jax.report.contact_sheet import contact_sheet
from weaksam_jax.report.draw import (
    PALETTE,
    display_scale,
    draw_boxes,
    draw_points,
    enlarge,
    label_font,
    overlay_map,
)

SOURCE_COLORS = PALETTE[: len(SOURCES)]
_TITLE = 24  # height in pixels of the line above a picture
_FEW = 40  # boxes that leave room for thicker lines


def proposal_sheet(image: np.ndarray, proposals: Proposals, columns: int = 3) -> np.ndarray:
    """One photo: its prompt points, the boxes of every source that it has, and all boxes.

    image: uint8 RGB `[H, W, 3]`. Points and boxes have the colour of their source; the boxes lie
    half transparent on the darkened grey photo, because there are hundreds. Returns uint8
    RGB, the pictures titled and in rows of `columns`.
    """
    scale = display_scale(image)
    photo, dark = enlarge(image, scale), overlay_map(image, np.zeros((0, 1, 1)), scale=scale)
    # The class column chooses the colour in `draw_points`: here it is the source.
    marks = proposals.points[:, [0, 1, 2, 4, 4]] * [scale, scale, 1, 1, 1]
    points = draw_points(photo, marks, SOURCE_COLORS, sources=SOURCES, scale=1)
    pictures = [_titled(points, _count(len(marks), "prompt point of the maps"), (0, 0, 0))]
    present = np.unique(proposals.source)
    for source in present:
        own = proposals.select(proposals.source == source)
        drawn = _boxes(dark, own, scale)
        color = SOURCE_COLORS[source]
        pictures.append(_titled(drawn, _count(len(own), f"box of {SOURCES[source]}"), color))
    if len(present) > 1:
        drawn = _boxes(dark, proposals, scale)
        pictures.append(_titled(drawn, f"all {len(proposals)} boxes", (0, 0, 0)))
    return contact_sheet(pictures, columns)


def similarity_picture(matrices: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> bytes:
    """Cosine similarities as heat maps side by side, one per source, in one colour scale: a PNG.

    matrices: name -> `[n, n]`. notes: name -> a line under the name. The same input gives the same
    bytes.
    """
    columns = min(4, math.ceil(math.sqrt(len(matrices))))
    rows = math.ceil(len(matrices) / columns)
    low = min(float(one.min()) for one in matrices.values())
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(3.2 * columns + 0.6, 3.5 * rows), layout="constrained", dpi=110)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes[len(matrices) :]:
            ax.axis("off")
        for ax, (name, matrix) in zip(axes, matrices.items(), strict=False):
            shown = ax.imshow(matrix, cmap="magma", vmin=low, vmax=1, interpolation="nearest")
            ax.set_title(f"{name}\n{notes[name]}", fontsize=9)
            ax.set_xticks([])
            ax.set_yticks([])
        figure.colorbar(shown, ax=axes.tolist(), label="cosine similarity", shrink=0.8)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _boxes(picture: np.ndarray, proposals: Proposals, scale: float) -> np.ndarray:
    """The boxes in the colours of their sources, in the store's order; many are drawn thin."""
    return draw_boxes(
        picture,
        proposals.boxes * scale,
        proposals.source,
        classes=SOURCES,
        colors=SOURCE_COLORS,
        scale=1,
        text=False,
        thickness=2 if len(proposals) <= _FEW else 1,
        opacity=0.75,
    )


def _titled(picture: np.ndarray, title: str, color: tuple[int, int, int]) -> np.ndarray:
    """The picture under a line of text with a square of that colour."""
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + _TITLE), "white")
    canvas.paste(Image.fromarray(picture), (0, _TITLE))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle([4, 6, 15, 17], fill=color)
    pen.text((22, _TITLE // 2), title, "black", label_font(14), anchor="lm")
    return np.asarray(canvas)


def _count(number: int, what: str) -> str:
    """ "1 box of grid", "2 boxes of grid"."""
    noun, _, rest = what.partition(" of ")
    plural = noun if number == 1 else noun + ("es" if noun.endswith("x") else "s")
    return f"{number} {plural} of {rest}"

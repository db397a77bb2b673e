"""Draws stages.svg, the picture of the pipeline's stages: `python docs/pictures/stages.py`."""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 900, 450
BOX_W, BOX_H = 158, 76
TORCH, JAX, BOTH = ("#fdeee0", "#c2691a"), ("#e3edfb", "#2b62b0"), ("#eeeeee", "#666666")
# name: (left, top, colours, title, two lines under it)
BOXES = {
    "data": (30, 60, BOTH, "data", ("photos + class tags", "every image checked")),
    "clues": (230, 60, TORCH, "clues", ("clue network trained", "on tags, class maps")),
    "proposals": (430, 60, TORCH, "proposals", ("SAM prompted by a", "grid and map peaks")),
    "wsod": (630, 60, JAX, "wsod", ("MIL detector", "MIST or OICR")),
    "pgt": (630, 210, JAX, "pgt", ("adaptive pseudo", "ground truth boxes")),
    "retrain": (430, 210, JAX, "retrain", ("Faster R-CNN or DINO", "with RoI or query drop")),
    "masks": (630, 360, TORCH, "masks", ("SAM prompted by", "the pseudo boxes")),
    "segment": (430, 360, JAX, "segment", ("instance segmenter", "(planned)")),
    "report": (30, 285, BOTH, "report", ("one page: figures,", "pictures, curves")),
}
# Points of each arrow, and the files that it stands for.
ARROWS = (
    ([(188, 98), (230, 98)], None),
    ([(388, 98), (430, 98)], None),
    ([(588, 98), (630, 98)], None),
    ([(709, 136), (709, 210)], "wsod/detections_train.json"),
    ([(630, 248), (588, 248)], None),
    ([(709, 286), (709, 360)], "pgt/pgt.json"),
    ([(630, 398), (588, 398)], None),
    ([(430, 248), (310, 248), (310, 305), (188, 305)], "detections"),
    ([(430, 398), (310, 398), (310, 341), (188, 341)], "masks"),
)
NOTES = (
    (509, 48, "a file per image"),
    (309, 48, "weights, then maps"),
)


def box(left: int, top: int, colours: tuple[str, str], title: str, lines: tuple[str, str]) -> str:
    """A rectangle with a title and two lines of text."""
    fill, edge = colours
    middle = left + BOX_W / 2
    texts = [(top + 23, title, "bold", 16)]
    texts += [(top + 45 + 18 * row, line, "normal", 13) for row, line in enumerate(lines)]
    shape = f'<rect x="{left}" y="{top}" width="{BOX_W}" height="{BOX_H}" rx="8" '
    return "\n".join(
        [shape + f'fill="{fill}" stroke="{edge}" stroke-width="2"/>']
        + [text(middle, y, line, weight, size) for y, line, weight, size in texts]
    )


def text(
    x: float, y: float, line: str, weight: str = "normal", size: int = 12, anchor: str = "middle"
) -> str:
    """A line of text; anchor: which part of it stands at x."""
    style = f'font-weight="{weight}" font-size="{size}" text-anchor="{anchor}" fill="#222222"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(line)}</text>'


def arrow(points: list[tuple[int, int]], name: str | None) -> str:
    """A line through the points with a head at the end, and a name at its middle."""
    path = " ".join(f"{x},{y}" for x, y in points)
    line = f'<polyline points="{path}" fill="none" stroke="#444444" stroke-width="2" '
    line += 'marker-end="url(#head)"/>'
    if name is None:
        return line
    (x0, y0), (x1, y1) = points[:2]
    upright = x0 == x1
    where = (x0 + 12, (y0 + y1) / 2 + 4) if upright else ((x0 + x1) / 2, y0 - 8)
    return line + "\n" + text(*where, name, anchor="start" if upright else "middle")


def legend() -> str:
    """What the colours mean."""
    rows = ((TORCH, "bridge (PyTorch)"), (JAX, "weaksam_jax (JAX)"), (BOTH, "neither"))
    parts = []
    for number, (colours, name) in enumerate(rows):
        y = 175 + 28 * number
        parts.append(
            f'<rect x="30" y="{y}" width="26" height="16" rx="3" fill="{colours[0]}" '
            f'stroke="{colours[1]}"/>'
        )
        parts.append(f'<text x="66" y="{y + 13}" font-size="13" fill="#222222">{name}</text>')
    return "\n".join(parts)


def picture() -> str:
    """The whole SVG."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" role="img">\n'
        "<title>The stages of the pipeline and the files between them</title>\n"
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="#444444"/></marker>'
        f'</defs>\n<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    )
    parts = [box(*one) for one in BOXES.values()] + [arrow(*one) for one in ARROWS]
    parts += [text(*note) for note in NOTES] + [legend()]
    return "\n".join([head, *parts, "</svg>", ""])


if __name__ == "__main__":
    target = Path(__file__).with_suffix(".svg")
    target.write_text(picture(), encoding="utf-8")

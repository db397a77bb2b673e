"""Pictures of boxes, points, maps and masks on uint8 RGB images.

Every function takes an image `[H, W, 3]` uint8 and coordinates in that image's pixels, enlarges the
image by `scale` (None: `display_scale`, which makes small pictures readable) and returns the
enlarged uint8 RGB picture. The input is never changed. Nothing here is random: the same input gives
the same bytes.
"""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from pycocotools import mask as coco_mask

from weaksam_jax.boxes import from_xywh, intersection
from weaksam_jax.data.detections import label_of
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.files import write_bytes

Color = tuple[int, int, int]

# Okabe and Ito's palette (2008), which stays apart under the common colour blindnesses; black left
# out because it vanishes on photographs.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
WHITE: Color = (255, 255, 255)
_NOTE = ("Software", "weaksam_jax")  # in the pictures that we made
_LARGE = 2**24  # bytes of a picture from which PNG is made quickly, not small
# Corners (left/right, above/inside/below) where a label is tried, in order of preference.
_PLACES = (("left", "above"), ("right", "above"), ("left", "below"), ("right", "below"))
_PLACES += (("left", "top"), ("left", "bottom"), ("right", "top"), ("right", "bottom"))


def class_colors(count: int) -> list[Color]:
    """A colour per class: the palette, then lighter and darker turns of it."""
    colors = []
    for index in range(count):
        base = np.array(PALETTE[index % len(PALETTE)], float)
        turn = index // len(PALETTE) % 3
        mixed = (base, base * 0.45 + 255 * 0.55, base * 0.62)[turn]
        colors.append(tuple(int(value) for value in mixed.round()))
    return colors


def display_scale(image: np.ndarray, long_side: int = 480) -> int:
    """The whole factor (1 to 3) that brings the long side to `long_side` or near it."""
    return int(np.clip(round(long_side / max(image.shape[:2])), 1, 3))


def enlarge(image: np.ndarray, scale: float) -> np.ndarray:
    """The image resized by a factor: cubic upwards, area averaging downwards."""
    if scale == 1:
        return image.copy()
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return cv2.resize(image, (width, height), interpolation=how)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    classes: Sequence[str],
    scores: Sequence[float] | None = None,
    colors: Sequence[Color] | None = None,
    *,
    scale: float | None = None,
    dashed: Sequence[bool] | None = None,
    text: bool = True,
    thickness: int | None = None,
    opacity: float = 1.0,
) -> np.ndarray:
    """Boxes with class names (and scores in percent) in the colour of their class.

    boxes `[n, 4]` x1 y1 x2 y2; labels `[n]` class indices; classes: names; colors: one per class;
    dashed `[n]`: drawn with broken lines; text False: lines only. Labels avoid each other and,
    where there is room, other boxes.
    """
    scale = display_scale(image) if scale is None else scale
    boxes = np.asarray(boxes, float).reshape(-1, 4) * scale
    labels = [int(label) for label in labels]
    colors = class_colors(len(classes)) if colors is None else colors
    dashed = [False] * len(boxes) if dashed is None else dashed
    base = enlarge(image, scale)
    picture = Image.fromarray(base)
    pen = ImageDraw.Draw(picture)
    thickness = thickness or max(2, round(max(picture.size) / 150))
    for box, label, broken in zip(boxes, labels, dashed, strict=True):
        _rectangle(pen, box, colors[label], thickness=thickness, dashed=broken)
    if text:
        names = [classes[label] for label in labels]
        if scores is not None:
            names = [f"{n} {100 * s:.0f}" for n, s in zip(names, scores, strict=True)]
        _labels(pen, picture.size, boxes, names=names, colors=[colors[label] for label in labels])
    drawn = np.asarray(picture)
    return drawn if opacity == 1 else cv2.addWeighted(drawn, opacity, base, 1 - opacity, 0)


def overlay_map(
    image: np.ndarray,
    maps: np.ndarray,
    colors: Sequence[Color] | None = None,
    *,
    scale: float | None = None,
) -> np.ndarray:
    """A heat map over the darkened grey image.

    maps: `[h, w]` in [0, 1] at any resolution, shown in matplotlib's `magma`; or `[c, h, w]` with a
    colour each, where a pixel takes the colour of the strongest maps and their strength.
    """
    scale = display_scale(image) if scale is None else scale
    base = enlarge(image, scale)
    size = (base.shape[1], base.shape[0])
    grey = cv2.cvtColor(base, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    ground = 0.55 * np.repeat(grey, 3, axis=2)
    maps = np.clip(np.asarray(maps, np.float32), 0, 1)
    stack = [cv2.resize(layer, size) for layer in maps.reshape(-1, *maps.shape[-2:])]
    if not stack:
        return ground.round().astype(np.uint8)
    stack = np.clip(np.stack(stack), 0, 1)
    strength = stack.max(axis=0)[..., None]
    if colors is None:
        heat = 255 * matplotlib.colormaps["magma"](strength[..., 0])[..., :3].astype(np.float32)
    else:
        weight = stack**2 + 1e-6
        weight /= weight.sum(axis=0)
        heat = np.tensordot(weight, np.asarray(colors, np.float32), axes=([0], [0]))
    mixed = ground + 0.85 * strength * (heat - ground)
    return np.clip(mixed.round(), 0, 255).astype(np.uint8)


def draw_points(
    image: np.ndarray,
    points: np.ndarray,
    colors: Sequence[Color],
    sources: Sequence[str] = (),
    *,
    scale: float | None = None,
) -> np.ndarray:
    """Prompt points: a disc each in its class colour, with a white rim.

    points `[P, 5]`: x, y, value, class index (-1: none, drawn white), source. With `sources` (names
    by source index) the mark tells the source: grid a dot, coarse a square, cross a diamond, fine
    and any other a disc.
    """
    scale = display_scale(image) if scale is None else scale
    picture = Image.fromarray(enlarge(image, scale))
    pen = ImageDraw.Draw(picture)
    radius = max(4, round(max(picture.size) / 75))
    for x, y, _, label, source in np.asarray(points, float).reshape(-1, 5):
        name = sources[int(source)] if sources else ""
        color = colors[int(label)] if label >= 0 else WHITE
        _mark(pen, x * scale, y * scale, radius=radius, color=color, name=name)
    return np.asarray(picture)


def draw_masks(
    image: np.ndarray,
    rles: Sequence[dict],
    labels: Sequence[int],
    colors: Sequence[Color],
    *,
    scale: float | None = None,
) -> np.ndarray:
    """COCO RLE masks (of the image's size), filled half transparent with a full outline."""
    scale = display_scale(image) if scale is None else scale
    picture = enlarge(image, scale)
    size = (picture.shape[1], picture.shape[0])
    thickness = max(1, round(max(size) / 300))
    for rle, label in zip(rles, labels, strict=True):
        layer = np.ascontiguousarray(coco_mask.decode(rle))  # it comes column by column
        if layer.shape[1::-1] != size:
            layer = cv2.resize(layer.astype(np.float32), size) > 0.5
        layer = layer.view(bool)
        color = tuple(map(int, colors[int(label)]))
        for channel, value in enumerate(color):  # by a table: photos may be huge
            mixed = (0.5 * np.arange(256) + 0.5 * value).round().astype(np.uint8)
            np.copyto(picture[..., channel], mixed[picture[..., channel]], where=layer)
        outline, _ = cv2.findContours(
            layer.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(picture, outline, -1, color, thickness, cv2.LINE_AA)
    return picture


def draw_detections(
    image: np.ndarray,
    detections: Sequence[Mapping],
    split: TagSplit | TruthSplit,
    *,
    scale: float | None = None,
) -> np.ndarray:
    """COCO results (or annotations) of one image: masks where there are any, boxes and scores.

    split: names the classes and their category ids. The best are drawn last.
    """
    scale = display_scale(image) if scale is None else scale
    ordered = sorted(detections, key=lambda one: one.get("score", 1.0))
    labels = [label_of(split)[one["category_id"]] for one in ordered]
    shapes = [one.get("segmentation") for one in ordered]
    masked = [(mask, label) for mask, label in zip(shapes, labels, strict=True) if mask]
    colors = class_colors(len(split.classes))
    rles, own = [mask for mask, _ in masked], [label for _, label in masked]
    picture = draw_masks(image, rles, own, colors=colors, scale=scale)
    boxes = from_xywh(np.asarray([one["bbox"] for one in ordered], float).reshape(-1, 4)) * scale
    scored = all("score" in one for one in ordered)
    scores = [one["score"] for one in ordered] if scored else None
    return draw_boxes(
        picture, boxes, labels, classes=split.classes, scores=scores, colors=colors, scale=1
    )


def save_png(path: str | Path, picture: np.ndarray | bytes) -> None:
    """Writes uint8 RGB `[h, w, 3]`, or the bytes of a PNG, atomically. An array's picture says that
    we made it (`is_own_png`)."""
    if not isinstance(picture, bytes):
        file = io.BytesIO()
        small = picture.size < _LARGE  # a large photo takes minutes otherwise
        how = {"optimize": True} if small else {"compress_level": 1}
        Image.fromarray(picture).save(file, "PNG", pnginfo=_note(), **how)
        picture = file.getvalue()
    write_bytes(path, picture)


def is_own_png(path: Path) -> bool:
    """Whether a picture was made by `save_png`, so that another may take its place."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(_NOTE[0]) == _NOTE[1]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _note() -> PngInfo:
    note = PngInfo()
    note.add_text(*_NOTE)
    return note


def _rectangle(pen, box: np.ndarray, color: Color, thickness: int, dashed: bool) -> None:
    """One box, its lines on the inner side of its edges; an inverted box is not drawn."""
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    if x2 < x1 or y2 < y1:
        return
    if not dashed:
        pen.rectangle([x1, y1, x2, y2], outline=color, width=thickness)
        return
    step, half = 7 * thickness, thickness - 1
    for start in range(x1, x2, step):
        stop = min(start + 4 * thickness, x2)
        pen.rectangle([start, y1, stop, y1 + half], fill=color)
        pen.rectangle([start, y2 - half, stop, y2], fill=color)
    for start in range(y1, y2, step):
        stop = min(start + 4 * thickness, y2)
        pen.rectangle([x1, start, x1 + half, stop], fill=color)
        pen.rectangle([x2 - half, start, x2, stop], fill=color)


def _mark(pen, x: float, y: float, radius: float, color: Color, name: str) -> None:
    """The mark of one prompt point; `name` is its source."""
    if name == "grid":
        pen.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], fill=color)
        return
    corners = {
        "coarse": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "cross": [(0, -1.1), (1.1, 0), (0, 1.1), (-1.1, 0)],
    }.get(name)
    for size, fill in ((radius, WHITE), (radius - 1.5, color)):
        if corners is None:
            pen.ellipse([x - size, y - size, x + size, y + size], fill=fill)
        else:
            pen.polygon([(x + size * dx, y + size * dy) for dx, dy in corners], fill=fill)


@cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries, so that every machine draws the same letters."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _labels(pen, size: tuple[int, int], boxes: np.ndarray, names, colors) -> None:
    """Writes a name at each box, most important (last drawn) boxes first."""
    font = label_font(int(np.clip(round(max(size) / 34), 11, 18)))
    placed: list[np.ndarray] = []
    for index in reversed(range(len(boxes))):
        left, top, right, bottom = pen.textbbox((0, 0), names[index], font=font)
        chip = np.array([right - left + 6, bottom - top + 5], float)
        others = np.delete(boxes, index, axis=0)
        spot = _place(chip, boxes[index], others, placed=np.array(placed).reshape(-1, 4), size=size)
        placed.append(spot)
        pen.rectangle(spot.round().tolist(), fill=colors[index])
        light = np.dot(colors[index], (0.299, 0.587, 0.114)) > 120
        ink = (0, 0, 0) if light else WHITE
        pen.text((round(spot[0]) + 3 - left, round(spot[1]) + 2 - top), names[index], ink, font)


def _place(chip, box, others, placed, size) -> np.ndarray:
    """Where a label of size `chip` covers least: other labels count most, then other boxes."""
    limit = np.maximum(np.array(size, float) - 1 - chip, 0)
    best, least = None, np.inf
    for rank, (side, level) in enumerate(_PLACES):
        x = box[0] if side == "left" else box[2] - chip[0]
        y = {
            "above": box[1] - chip[1],
            "below": box[3] + 1,
            "top": box[1],
            "bottom": box[3] - chip[1],
        }[level]
        corner = np.clip([x, y], 0, limit)
        spot = np.concatenate([corner, corner + chip])
        cost = 8 * intersection(spot[None], placed).sum() + intersection(spot[None], others).sum()
        cost += 0.5 * intersection(spot[None], box[None]).sum() + rank
        if cost < least:
            best, least = spot, cost
    return best

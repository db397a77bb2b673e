"""The mini set as files: a true VOCdevkit (JPEG, XML, ImageSets, SegmentationObject and
SegmentationClass) from a seed."""

import os
import shutil
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from weaksam_jax.data.mini_set.scene import CLASSES, MiniScene, draw_scene
from weaksam_jax.progress import progress_bar


def write_mini(
    path: str | Path,
    seed: int,
    train_images: int = 300,
    test_images: int = 200,
    progress: bool = True,
) -> Path:
    """Writes the mini set below `path` (as `path/VOC2007`) and returns that folder.

    The same seed gives the same bytes. Written under a temporary name and renamed: `path/VOC2007`
    is whole or absent; an existing one is replaced. Names: 000001 on for trainval (every sixth is
    val, the others train), the test images after them.
    """
    root = Path(path) / "VOC2007"
    root.parent.mkdir(parents=True, exist_ok=True)
    work = root.parent / ".VOC2007.tmp"
    shutil.rmtree(work, ignore_errors=True)  # what a killed call left
    try:
        _write(work, seed, train_images, test_images, progress)
        if root.exists():
            shutil.rmtree(root)
        os.replace(work, root)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def _write(root: Path, seed: int, train_images: int, test_images: int, progress: bool) -> None:
    for folder in ("JPEGImages", "Annotations", "SegmentationObject", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    lists: dict[str, list[str]] = {"train": [], "val": [], "trainval": [], "test": []}
    flags: dict[str, dict[str, int]] = {}
    total = train_images + test_images
    bar = progress_bar(range(1, total + 1), "mini set", disable=not progress)
    for index in bar:
        name = f"{index:06d}"
        scene = draw_scene(seed, index)
        _write_scene(root, name, scene)
        flags[name] = _class_flags(scene)
        if index > train_images:
            lists["test"].append(name)
        else:
            lists["trainval"].append(name)
            lists["val" if index % 6 == 0 else "train"].append(name)
    main = root / "ImageSets" / "Main"
    for split, names in lists.items():
        (main / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for label in CLASSES:
            rows = "".join(f"{name} {flags[name][label]:2d}\n" for name in names)
            (main / f"{label}_{split}.txt").write_text(rows)


def _class_flags(scene: MiniScene) -> dict[str, int]:
    """VOC's per-class lists: 1 present, 0 difficult objects only, -1 absent."""
    flags = dict.fromkeys(CLASSES, -1)
    for thing in scene.objects:
        flags[thing.name] = max(flags[thing.name], 0 if thing.difficult else 1)
    return flags


def _write_scene(root: Path, name: str, scene: MiniScene) -> None:
    Image.fromarray(scene.image).save(root / "JPEGImages" / f"{name}.jpg", quality=92)
    numbers = [0, *(CLASSES.index(thing.name) + 1 for thing in scene.objects)]
    classes = np.array(numbers + [0] * (255 - len(numbers)) + [255], np.uint8)[scene.instances]
    for folder, pixels in (("SegmentationObject", scene.instances), ("SegmentationClass", classes)):
        picture = Image.fromarray(pixels, mode="P")
        picture.putpalette(_palette())
        picture.save(root / folder / f"{name}.png")
    (root / "Annotations" / f"{name}.xml").write_text(_xml(name, scene))


def _palette() -> list[int]:
    """VOC's colour map: bits of the index spread over the high bits of R, G and B."""
    index = np.arange(256)
    rgb = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            rgb[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return rgb.ravel().tolist()


def _xml(name: str, scene: MiniScene) -> str:
    height, width = scene.image.shape[:2]
    lines = [
        "<annotation>",
        f"\t<folder>VOC2007</folder>\n\t<filename>{name}.jpg</filename>",
        "\t<source><database>weaksam-jax mini set</database></source>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "\t<segmented>1</segmented>",
    ]
    for thing in scene.objects:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True)
        lines += [
            f"\t<object>\n\t\t<name>{escape(thing.name)}</name>\n\t\t<pose>Unspecified</pose>",
            f"\t\t<truncated>{thing.truncated:d}</truncated>",
            f"\t\t<difficult>{thing.difficult:d}</difficult>",
            "\t\t<bndbox>" + "".join(f"<{c}>{v}</{c}>" for c, v in corners) + "</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])

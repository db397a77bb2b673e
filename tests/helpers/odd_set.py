"""One image of each odd kind, and the layouts of a data set of them."""

import json
import unicodedata
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from folders import voc_object
from PIL import Image


def _photo(width: int = 48, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(60, 200, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _grey16() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 40 * 48).astype(np.uint16).reshape(40, 48))


def _turned(orientation: int) -> dict:
    exif = Image.Exif()
    exif[274] = orientation
    return {"exif": exif}


def _kinds() -> dict[str, tuple[Image.Image, dict]]:
    """File name -> (image, how it is saved)."""
    animated = {"save_all": True, "append_images": [_photo(), _photo()]}
    cut_out = _photo().convert("RGBA")
    cut_out.putalpha(100)
    kinds = {
        "cmyk.jpg": (_photo().convert("CMYK"), {}),
        "cmyk2.tif": (_photo().convert("CMYK"), {}),
        "grey16.png": (_grey16(), {}),
        "grey16b.tiff": (_grey16(), {}),
        "palette.png": (_photo().quantize(16), {"transparency": 3}),
        "transparent.webp": (cut_out, {}),
        "grey and alpha.png": (_photo().convert("LA"), {}),
        "one bit.png": (_photo().convert("1"), {}),
        "animated.gif": (_photo(), animated),
        "animated2.webp": (_photo(), animated),
        "animated3.png": (_photo(), animated),
        "tall.png": (_photo(1, 64), {}),
        "wide.bmp": (_photo(2000, 40), {}),
        "with blanks 1.Jpg": (_photo(), {}),
        "Hündin 猫.JPEG": (_photo(), {}),
        unicodedata.normalize("NFD", "Zoë.png"): (_photo(), {}),
        "😀.jpg": (_photo(), {}),
        "a&b <i>'x'.png": (_photo(), {}),
    }
    for i in range(1, 9):
        kinds[f"turned{i}.{'tif' if i in (5, 7) else 'jpg'}"] = (_photo(), _turned(i))
    return kinds


def write_images(folder: Path) -> dict[str, tuple[int, int]]:
    """Writes one image of each kind; file name -> upright (width, height)."""
    folder.mkdir(parents=True)
    sizes = {}
    for name, (image, options) in _kinds().items():
        image.save(folder / name, **options)
        turned = options.get("exif", {274: 1})[274] >= 5
        sizes[name] = image.size[::-1] if turned else image.size
    return sizes


def _box(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of pixels counted from 1, inside of an image."""
    return (1, 1, max(size[0] // 2, 1), max(size[1] // 2, 1))


def write_odd_voc(root: Path) -> dict[str, tuple[int, int]]:
    """All images in both splits, a dog in each."""
    sizes = write_images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, size in sizes.items():
        text = f"<annotation>{voc_object('dog', _box(size))}</annotation>"
        (root / "Annotations" / f"{Path(name).stem}.xml").write_text(text)
    names = "".join(f"{unicodedata.normalize('NFC', Path(name).stem)}\n" for name in sizes)
    for split in ("trainval", "test"):
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.write_text(names, encoding="utf-8-sig")
    return sizes


def write_odd_coco(root: Path) -> dict[str, tuple[int, int]]:
    sizes = write_images(root / "images")
    images, annotations = [], []
    for number, (name, (width, height)) in enumerate(sizes.items(), 1):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        x, y, right, bottom = _box((width, height))
        box = [x - 1, y - 1, right, bottom]
        annotations.append({"id": number, "image_id": number, "category_id": 3, "bbox": box})
    categories = [{"id": 3, "name": "dog"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8-sig")
    return sizes


def write_odd_csv(root: Path, test: bool = False) -> dict[str, tuple[int, int]]:
    """All images for training; test: and once more in a folder of their own for test."""
    sizes = write_images(root / "images")
    names = [unicodedata.normalize("NFC", name) for name in sizes]
    rows = "".join(f"{name};dog;train\r\n" for name in names)
    if test:
        write_images(root / "images" / "again")
        rows += "".join(f"again/{name};dog;test\r\n" for name in names)
    (root / "tags.csv").write_bytes(f"File;Tags;Split\r\n{rows}".encode("utf-16"))
    return sizes


@cache
def odd_tfds() -> tuple[dict, dict[str, tuple[int, int]]]:
    """What `tfds.data_source("voc/2007")` would give of the same images, in its train split.

    Not to be changed.
    """
    examples, sizes = [], {}
    for name, (image, options) in _kinds().items():
        data = BytesIO()
        image.save(data, Image.registered_extensions()[Path(name).suffix.lower()], **options)
        turned = options.get("exif", {274: 1})[274] >= 5
        width, height = sizes[name] = image.size[::-1] if turned else image.size
        left, top, right, bottom = _box((width, height))
        shares = np.array([top / height, left / width, bottom / height, right / width], np.float32)
        columns = {"label": [np.int64(11)], "bbox": [shares]}
        columns |= {"is_difficult": [np.bool_(False)], "is_truncated": [np.bool_(False)]}
        image_and_name = {"image": data.getvalue(), "image/filename": name.encode()}
        examples.append({**image_and_name, "objects": columns})
    return {"train": examples, "validation": [], "test": []}, sizes

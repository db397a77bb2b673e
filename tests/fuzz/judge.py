"""Right values of successes: figures of the unchanged input, pycocotools, PIL, NumPy."""

import contextlib
import functools
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tests.fuzz import sandbox, sets

Check = Callable[[Path], str | None]


def as_before(name: str, metric: str) -> Check:
    """The figures of a mutation that keeps the meaning are those of the input as it was."""

    def check(out: Path) -> str | None:
        figures, before = _figures(out), _unchanged(name, metric)
        return None if figures == before else f"{figures} instead of {before}"

    return check


@functools.cache
def _unchanged(name: str, metric: str) -> dict:
    """The figures of the input before any mutation."""
    room = Path(tempfile.mkdtemp(prefix="fuzz-"))
    write = sets.write_coco if name == "coco" else sets.write_voc
    write(room / "data")
    rows = sets.results() if name == "coco" else sets.voc_results()
    (room / "found.json").write_text(json.dumps(rows))
    found = base_store() if name == "store" else room / "found.json"
    argv = ["--detections", found, "--data", room / "data", "--split", "val"]
    argv += ["--metric", metric, "--json", room / "out" / "figures.json"]
    ending = sandbox.run("experiments.evaluate", list(map(str, argv)), room, out=room / "out")
    assert ending.status == 0, ending.stderr
    return _figures(room / "out")


def _figures(out: Path) -> dict:
    return json.loads((out / "figures.json").read_text())


def by_pycocotools(room: Path, metric: str) -> Check:
    """AP and AP50 are pycocotools', where it takes the files as they are."""

    def check(out: Path) -> str | None:
        if metric not in ("coco", "coco-segm"):
            return "?"
        theirs = _pycocotools(room, "segm" if metric == "coco-segm" else "bbox")
        if theirs is None:
            return "?"
        ours = _figures(out)
        ours = [ours["ap"], ours["ap50"]]
        return None if np.allclose(ours, theirs, atol=1e-6) else f"{ours}, pycocotools {theirs}"

    return check


def _pycocotools(room: Path, kind: str) -> list[float] | None:
    """[AP, AP50] in percent; None where it cannot read the files, or reads another meaning."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    try:
        data = json.loads((room / "data" / "annotations" / "instances_val.json").read_bytes())
        found = json.loads((room / "found.json").read_bytes())
        if not _plain(data, found):
            return None
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = data
            truth.createIndex()
            scored = COCOeval(truth, truth.loadRes(found), kind)
            scored.evaluate()
            scored.accumulate()
            scored.summarize()
    except Exception:
        return None
    return [100 * float(value) for value in scored.stats[:2]]


def _plain(data: dict, found: list) -> bool:
    """Whether numbers are numbers and every object is in the files' own terms: only then does
    pycocotools, which checks nothing, mean the same."""
    numbers = [one.get(key) for one in found for key in ("image_id", "category_id", "score")]
    numbers += [value for one in [*found, *data["annotations"]] for value in one["bbox"]]
    numbers += [one[key] for one in data["annotations"] for key in ("image_id", "category_id")]
    flags = [one.get("iscrowd", 0) for one in data["annotations"]]
    plain = all(type(value) in (int, float) and np.isfinite(value) for value in numbers)
    areas = [one.get("area") for one in data["annotations"]]
    whole = all(type(value) in (int, float) and 0 < value < 1e9 for value in areas)
    images = {one["id"]: (one["width"], one["height"]) for one in data["images"]}
    same = all(images.get(i) == sets.SIZE for i in images) and len(images) == len(data["images"])
    return plain and whole and same and not any(flags)


def counts(**wanted: int) -> Check:
    """What stage data counted."""

    def check(out: Path) -> str | None:
        found = json.loads((out / "metrics.json").read_text())["dataset"]
        wrong = {key: found.get(key) for key, value in wanted.items() if found.get(key) != value}
        return f"counted {wrong}" if wrong else None

    return check


def opens(path: Path) -> Check:
    """An image that was taken is one that Pillow decodes."""

    def check(out: Path) -> str | None:
        try:
            with Image.open(path) as image:
                image.load()
                ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:
            return f"Pillow cannot read it ({error})"
        return None

    return check


def only_if(right: bool, problem: str) -> Check:
    """A success is right or wrong by what was done to the input."""
    return lambda out: None if right else problem


def finite(name: str) -> Check:
    """A file of arrays that are all finite."""

    def check(out: Path) -> str | None:
        from safetensors.numpy import load_file

        arrays = load_file(out / name)
        bad = [key for key, value in arrays.items() if not np.isfinite(value).all()]
        return f"{bad[0]} is not finite" if bad else None

    return check


def image_bytes(kind: str, rng: random.Random) -> bytes:
    """An image of 32 x 24 in some mode that the format knows."""
    modes = {
        "JPEG": ("RGB", "L", "CMYK"),
        "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
        "GIF": ("P", "L"),
        "TIFF": ("RGB", "L", "I;16", "1", "CMYK"),
        "BMP": ("RGB", "L", "1"),
        "WEBP": ("RGB", "RGBA"),
    }
    mode = rng.choice(modes[kind])
    width, height = sets.SIZE
    noise = np.random.default_rng(rng.randrange(2**32)).integers(
        0, 256, (height, width, 3), np.uint8
    )
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(noise).convert(mode)
    file = io.BytesIO()
    options = {}
    if kind in ("JPEG", "PNG", "TIFF") and rng.random() < 0.5:
        exif = Image.Exif()
        exif[274] = rng.randrange(10)
        options["exif"] = exif
    image.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def base_store() -> Path:
    """A store of selective search on the VOC set."""
    room = Path(tempfile.mkdtemp(prefix="fuzz-"))
    sets.write_voc(room / "data")
    argv = ["--data", room / "data", "--split", "val", "--out", room / "store"]
    argv = [*map(str, argv), "--proposals", "selective_search"]
    ending = sandbox.run("bridge.export", argv, room, out=room / "store")
    assert ending.status == 0, ending.stderr
    return room / "store"


@functools.cache
def base_checkpoint(zipped: bool) -> bytes:
    """A ResNet-50 of one channel as torch.save writes it, today (zipped) or before version 1.6."""
    import torch
    from small_torchvision import SmallResNet

    torch.manual_seed(0)
    file = io.BytesIO()
    state = SmallResNet(1).state_dict()
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()

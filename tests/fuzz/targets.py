"""What is mutated, the command that reads it, and what it must give where it succeeds."""

import json
import pickle
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.fuzz import judge, mutate, sets

Check = Callable[[Path], str | None]


@dataclass(frozen=True)
class Job:
    """A command on mutated input. same: whether the mutation keeps the meaning, so that figures
    must be those of the unchanged input. check: what is wrong with a success, given the folder of
    its output (None: nothing; "?": nobody can judge)."""

    command: str
    argv: tuple[str, ...]
    check: Check = field(default=lambda out: "?")


def voc(room: Path, rng: random.Random) -> Job:
    """A VOC set: one XML, list or name mutated."""
    root = sets.write_voc(room / "data")
    what = rng.choice(("same", "xml", "xml", "xml", "list", "raw"))
    path = root / "Annotations" / f"{rng.choice(sets.NAMES)}.xml"
    text = path.read_text()
    if what == "same":
        for one in root.glob("*/*.xml"):
            one.write_bytes(mutate.same_text(one.read_text(), rng))
    elif what == "xml":
        path.write_bytes(mutate.encoded(_xml(text, rng), rng))
    elif what == "list":
        path = root / "ImageSets" / "Main" / "val.txt"
        path.write_bytes(mutate.encoded(mutate.text_fields(path.read_text(), rng, " "), rng))
    else:
        path.write_bytes(mutate.raw(text.encode(), rng))
    metric = rng.choice(("voc07", "voc12", "corloc", "coco", "recall"))
    (room / "found.json").write_text(json.dumps(sets.voc_results()))
    return _evaluate(room, metric, judge.as_before("voc", metric) if what == "same" else None)


def _xml(text: str, rng: random.Random) -> str:
    tags = re.findall("<(name|difficult|xmin|ymin|xmax|ymax|object|bndbox|annotation)>", text)
    tag = rng.choice(tags)
    odd = rng.choice([one for one in mutate.ODD if isinstance(one, str | int | float)][:-1])
    changes = {
        "value": lambda: re.sub(f"<{tag}>[^<]*</{tag}>", f"<{tag}>{odd}</{tag}>", text, count=1),
        "twice": lambda: re.sub(f"(<{tag}>.*?</{tag}>)", r"\1\1", text, count=1, flags=re.S),
        "gone": lambda: re.sub(f"<{tag}>.*?</{tag}>", "", text, count=1, flags=re.S),
        "spaces": lambda: text.replace(f"<{tag}>", f"<{tag}> ").replace(f"</{tag}>", f" </{tag}>"),
        "namespace": lambda: text.replace("<annotation>", '<annotation xmlns="urn:voc">'),
        "declared": lambda: text.replace(
            'version="1.0"', f'version="1.0" encoding="{rng.choice(("GBK", "latin-1", "x", ""))}"'
        ),
        "entity": lambda: text.replace(
            "<annotation>", "<!DOCTYPE a [<!ENTITY e 'x'>]><annotation>"
        ),
    }
    return changes[rng.choice(list(changes))]()


def coco(room: Path, rng: random.Random) -> Job:
    """COCO annotations."""
    same = rng.random() < 0.2
    text = json.dumps(sets.coco_json(), indent=1)
    data = mutate.same_text(text, rng) if same else mutate.json_text(sets.coco_json(), rng)
    sets.write_coco(room / "data", data)
    (room / "found.json").write_text(json.dumps(sets.results()))
    metric = rng.choice(("coco", "coco", "coco-segm", "voc12", "corloc", "voc-segm"))
    check = judge.as_before("coco", metric) if same else judge.by_pycocotools(room, metric)
    return _evaluate(room, metric, check)


def results(room: Path, rng: random.Random) -> Job:
    """COCO results."""
    same = rng.random() < 0.2
    text = json.dumps(sets.results(), indent=1)
    data = mutate.same_text(text, rng) if same else mutate.json_text(sets.results(), rng)
    sets.write_coco(room / "data")
    (room / "found.json").write_bytes(data)
    metric = rng.choice(("coco", "coco", "coco-segm", "coco-segm", "voc07", "corloc", "voc-segm"))
    check = judge.as_before("coco", metric) if same else judge.by_pycocotools(room, metric)
    return _evaluate(room, metric, check)


def pseudo_boxes(room: Path, rng: random.Random) -> Job:
    """COCO results that become pseudo boxes."""
    sets.write_coco(room / "data")
    (room / "found.json").write_bytes(mutate.json_text(sets.results(), rng))
    argv = ("--detections", "found.json", "--data", "data", "--split", "val")
    return Job("experiments.pgt", _in(room, *argv, "--out", "out/pgt.json"))


def tags(room: Path, rng: random.Random) -> Job:
    """tags.csv."""
    root = sets.write_csv(room / "data")
    same, text = rng.random() < 0.2, sets.csv_text()
    if same:
        data = mutate.same_text(text, rng)
    elif rng.random() < 0.3:
        data = mutate.raw(text.encode(), rng)
    else:
        data = mutate.encoded(mutate.text_fields(text, rng), rng)
    (root / "tags.csv").write_bytes(data)
    return _data(room, judge.counts(train_images=2, test_images=2, classes=2) if same else None)


def images(room: Path, rng: random.Random) -> Job:
    """An image of some kind, damaged or not."""
    root = sets.write_csv(room / "data")
    path = root / "images" / "000001.jpg"
    kind = rng.choice(("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"))
    data = judge.image_bytes(kind, rng)
    path.write_bytes(data if rng.random() < 0.3 else mutate.raw(data, rng))
    return _data(room, judge.opens(path))


def settings(room: Path, rng: random.Random) -> Job:
    """A file of settings for --config."""
    sets.write_csv(room / "data")
    from experiments.pipeline.config import light
    from experiments.pipeline.options import PipelineOptions, settings_json

    plain = settings_json(PipelineOptions(data="data", settings=light()))
    part = rng.choice(["wsod", "retrain", "pgt", "export", "masks", "lite", "clue_use"])
    chosen = {"settings": {part: plain["settings"][part]}}
    (room / "config.json").write_bytes(mutate.json_text(chosen, rng))
    job = _data(room, None)
    return Job(job.command, (*job.argv, "--config", str(room / "config.json")))


def store(room: Path, rng: random.Random) -> Job:
    """A finished proposal store."""
    shutil.copytree(judge.base_store(), room / "store")
    sets.write_voc(room / "data")
    path = rng.choice(sorted(p for p in (room / "store").rglob("*") if p.is_file()))
    before = path.read_bytes()
    after = before if rng.random() < 0.1 else mutate.raw(before, rng)
    path.write_bytes(after)
    if rng.random() < 0.5:
        argv = ("--data", "data", "--split", "val", "--out", "store", "--verify")
        check = judge.only_if(before == after, "a damaged store was called whole")
        return Job("bridge.export", _in(room, *argv), check)
    argv = ("--detections", "store", "--data", "data", "--split", "val", "--metric", "recall")
    argv = _in(room, *argv, "--json", "out/figures.json")
    return Job("experiments.evaluate", argv, judge.as_before("store", "recall"))


def checkpoint(room: Path, rng: random.Random) -> Job:
    """A PyTorch checkpoint."""
    path = room / "weights.pth"
    data = judge.base_checkpoint(rng.random() < 0.5)
    path.write_bytes(data if rng.random() < 0.1 else mutate.raw(data, rng))
    argv = ("resnet50", "--from", "weights.pth", "--to", "out/weights.safetensors")
    return Job("bridge.convert", _in(room, *argv), judge.finite("weights.safetensors"))


def proposals_pickle(room: Path, rng: random.Random) -> Job:
    """A pickle of proposals."""
    sets.write_voc(room / "data")
    boxes = [np.asarray([[1, 1, 9, 9], [2, 3, 20, 19]], np.float32) for _ in range(2)]
    found = {"indexes": [1, 2], "boxes": boxes, "scores": [np.ones(2)] * 2}
    if rng.random() < 0.4:
        key = rng.choice(list(found))
        odd = rng.choice(mutate.ODD)
        if rng.random() < 0.5:
            found[key] = odd
        else:
            found[key] = [odd, *found[key][1:]]
    data = pickle.dumps(found, protocol=rng.choice((0, 2, 4, 5)))
    (room / "p.pkl").write_bytes(data if rng.random() < 0.4 else mutate.raw(data, rng))
    argv = ("read", "--data", "data", "--split", "train", "--pickle", "p.pkl", "--store", "out")
    return Job("bridge.released_pickles", _in(room, *argv))


def _evaluate(room: Path, metric: str, check: Check | None) -> Job:
    argv = ("--detections", "found.json", "--data", "data", "--split", "val", "--metric", metric)
    argv = _in(room, *argv, "--json", "out/figures.json")
    return Job("experiments.evaluate", argv, check or (lambda out: "?"))


def _data(room: Path, check: Check | None) -> Job:
    argv = (*_in(room, "--data", "data", "--out", "out"), "--stages", "data", "--preset", "light")
    return Job("experiments.custom", argv, check or (lambda out: "?"))


_PATHS = ("data", "out", "store", "found.json", "weights.pth", "p.pkl")


def _in(room: Path, *argv: str) -> tuple[str, ...]:
    """The arguments with paths in the room."""
    return tuple(str(room / one) if one.split("/")[0] in _PATHS else one for one in argv)


# How often each is drawn.
TARGETS = {
    voc: 4,
    coco: 5,
    results: 5,
    pseudo_boxes: 2,
    tags: 3,
    images: 3,
    settings: 4,
    store: 3,
    checkpoint: 2,
    proposals_pickle: 3,
}

"""No command writes over what it reads, or over what no command of ours wrote."""

import ast
import importlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from folders import write_coco

from experiments.pipeline.commands import commands
from weaksam_jax.cli import entry_point

ROOT = Path(__file__).parents[2]
# Flags that are paths and only read. A new one is marked as written (`weaksam_jax.outputs`), or
# stands here.
READ = {"clues", "config", "data", "deit", "detections", "pickle", "proposals", "run", "runs"}
READ |= {"source", "store", "weights"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A COCO set `c`, its store `s` (packed: `p`), a pickle `p.pkl`, results `found.json`."""
    room = tmp_path_factory.mktemp("made")
    for split in ("train", "val"):
        write_coco(room / "c", name=f"instances_{split}")
    boxes = [np.asarray([[1, 1, 9, 8]], np.float32) for _ in range(2)]
    found = {"indexes": [3, 7], "boxes": boxes, "scores": [np.ones(1)] * 2}
    (room / "p.pkl").write_bytes(pickle.dumps(found, protocol=2))
    argv = ("read", "--data", "c", "--split", "train", "--pickle", "p.pkl", "--store", "s")
    assert called(room, "bridge.released_pickles", *argv) == 0
    row = {"image_id": 7, "category_id": 9, "bbox": [2, 1, 6, 4], "score": 0.9}
    (room / "found.json").write_text(json.dumps([row]))
    return room


@pytest.fixture
def room(made, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path / "room")
    monkeypatch.chdir(tmp_path / "room")
    return tmp_path / "room"


def called(room: Path, command: str, *argv: str) -> int:
    before = Path.cwd()
    os.chdir(room)
    try:
        return entry_point(importlib.import_module(command).main, list(argv))
    finally:
        os.chdir(before)


def content(room: Path) -> dict[str, bytes]:
    files = [path for path in room.rglob("*") if path.is_file()]
    return {path.relative_to(room).as_posix(): path.read_bytes() for path in files}


PICKLES = "bridge.released_pickles"
WRITE = ("write", "--data", "c", "--split", "train", "--store", "s", "--pickle")
READ_ = ("read", "--data", "c", "--split", "train", "--pickle", "p.pkl", "--store")
EXPORT = ("--data", "c", "--split", "train", "--proposals", "selective_search", "--out")
RECALL = ("--data", "c", "--split", "train", "--metric", "recall", "--detections")
PACK = ("--store", "s", "--split", "train", "--to")
PGT = ("--detections", "found.json", "--data", "c", "--split", "train", "--out")
TRAIN = "c/annotations/instances_train.json"
REFUSED = [
    (PICKLES, (*WRITE, TRAIN), "--pickle: .* lies in the data set"),
    (PICKLES, (*WRITE, "c/annotations/new.pkl"), "--pickle: .* lies in the data set"),
    (PICKLES, (*WRITE, "c/images/a.jpg"), "--pickle: .* lies in the data set"),
    (PICKLES, (*WRITE, "s/train/manifest.json"), "belongs to a proposal store"),
    (PICKLES, (*WRITE, "s/train/07/7.safetensors"), "belongs to a proposal store"),
    (PICKLES, (*READ_, "c"), "--store: .* is the data set"),
    (PICKLES, (*READ_, "c/annotations"), "--store: .* belongs to the data set"),
    (PICKLES, (*READ_, "."), "--store: .* contains the data set"),
    ("bridge.export", (*EXPORT, "c"), "--out: .* is the data set"),
    ("bridge.export", (*EXPORT, "c/images/x"), "--out: .* belongs to the data set"),
    ("bridge.pack", (*PACK, "c"), "--to: .* is a data set"),
    ("bridge.pack", (*PACK, "s"), "is the store itself"),
    ("experiments.evaluate", (*RECALL, "s", "--json", "s/train/manifest.json"), "proposal store"),
    ("experiments.evaluate", (*RECALL, "s", "--json", "link.json"), "proposal store"),
    ("experiments.evaluate", (*RECALL, "found.json", "--json", "found.json"), "--detections"),
    ("experiments.evaluate", (*RECALL, "found.json", "--json", TRAIN), "lies in the data set"),
    ("experiments.evaluate", (*RECALL, "found.json", "--voc-files", "c"), "is the data set"),
    ("experiments.pgt", (*PGT, TRAIN), "lies in the data set"),
    ("bridge.convert", ("vgg16", "--from", "p.pkl", "--to", "p.pkl"), "is the file of --from"),
    ("experiments.paper.proposals", ("--data", "c", "--table", "4", "--out", "c"), "is the data"),
    ("experiments.paper.proposals", ("--data", "c", "--table", "4", "--out", "."), "contains"),
]


@pytest.mark.parametrize(("command", "argv", "said"), REFUSED)
def test_inputs_stay_as_they_are(room, capsys, command, argv, said):
    (room / "link.json").symlink_to("s/train/manifest.json")
    before = content(room)
    assert called(room, command, *argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and re.search(said, error), error
    assert content(room) == before


MINE = '{"my": "file"}'
FOREIGN = [
    (PICKLES, (*WRITE, "out/mine.json"), "out/mine.json"),
    (PICKLES, (*READ_, "out"), "out/train/manifest.json"),
    (PICKLES, (*READ_, "out"), "out/train/07/7.safetensors"),
    ("bridge.export", (*EXPORT, "out"), "out/train/manifest.json"),
    ("bridge.export", (*EXPORT, "out"), "out/train/03/3.safetensors"),
    ("bridge.pack", (*PACK, "out"), "out/train/manifest.json"),
    ("bridge.pack", (*PACK, "out"), "out/train/pack.json"),
    ("bridge.pack", (*PACK, "out"), "out/train/00000.array_record"),
    ("experiments.pgt", (*PGT, "out/beach.json"), "out/beach.png"),
    ("experiments.pgt", (*PGT, "out/beach.json"), "out/beach.sheet.json"),
    ("experiments.evaluate", (*RECALL, "found.json", "--voc-files", "out"),
     "out/comp4_det_train_dog.txt"),
    ("experiments.paper.proposals",
     ("--data", "c", "--table", "4", "--stores", "s", "--out", "out"), "out/table4.json"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "argv", "name"), FOREIGN)
@pytest.mark.parametrize("linked", [False, True])
def test_files_that_no_command_made_stay(room, capsys, command, argv, name, linked):
    path = room / name
    path.parent.mkdir(parents=True)
    if linked:
        (room / "mine").write_text(MINE)
        path.symlink_to(room / "mine")
    else:
        path.write_text(MINE)
    assert called(room, command, *argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and path.name in error and "was there before" in error
    assert path.read_text() == MINE and path.is_symlink() == linked


AGAIN = [
    (PICKLES, (*READ_, "out")),
    (PICKLES, (*WRITE, "out.pkl")),
    (PICKLES, (*WRITE, "s/out.pkl")),
    ("bridge.export", (*EXPORT, "out")),
    ("bridge.pack", (*PACK, "out")),
    ("experiments.pgt", (*PGT, "out/pgt.json")),
    ("experiments.evaluate", (*RECALL, "s", "--json", "out.json", "--voc-files", "out")[:-2]),
    ("experiments.evaluate", (*RECALL, "found.json", "--json", "o.json", "--voc-files", "out")),
    ("experiments.paper.proposals",
     ("--data", "c", "--table", "8", "--stores", "s", "--split", "train", "--out", "out")),
]  # fmt: skip


@pytest.mark.parametrize(("command", "argv"), AGAIN)
def test_the_same_command_again_makes_the_same(room, capsys, command, argv):
    found = []
    for _ in range(2):
        assert called(room, command, *argv) == 0, capsys.readouterr().err
        found.append({k: v for k, v in content(room).items() if "lock" not in k})
    assert found[0] == found[1] and len(found[0]) > 7


def test_what_a_killed_pack_left_is_ours(room):
    assert called(room, "bridge.pack", *PACK, "out") == 0
    for name in ("pack.json", "manifest.json"):
        (room / "out" / "train" / name).unlink()
    assert called(room, "bridge.pack", *PACK, "out") == 0
    assert called(room, "bridge.pack", "--store", "out", "--split", "train", "--verify") == 0


@pytest.mark.parametrize("left", [b"", b"\0" * 700, 30, 300])
def test_what_a_power_cut_left_is_ours(room, left):
    path = room / "s" / "train" / "07" / "7.safetensors"
    path.write_bytes(path.read_bytes()[:left] if isinstance(left, int) else left)
    assert called(room, PICKLES, *READ_, "s") == 0
    assert called(room, "bridge.pack", "--store", "s", "--split", "train", "--verify") == 0


def test_files_of_a_run(room, capsys):
    run = room / "run"
    (run / "wsod").mkdir(parents=True)
    (run / ".weaksam.lock").write_text('{"made_by": "run"}')
    for name in ("metrics.json", "wsod/detections_train.json"):
        (run / name).write_text("[]")
        assert called(room, "experiments.evaluate", *RECALL, "s", "--json", f"run/{name}") == 2
        assert "belongs to the run" in capsys.readouterr().err
        assert (run / name).read_text() == "[]"
    for _ in range(2):
        argv = (*RECALL, "s", "--json", "run/recall.json")
        assert called(room, "experiments.evaluate", *argv) == 0


def test_a_data_set_that_is_not_named_in_utf8(room, capsys):
    name = os.fsdecode(b"lat\xfc")
    shutil.copytree(room / "c", room / name)
    argv = [name if one == "c" else one for one in (*READ_, "out")]
    assert called(room, PICKLES, *argv) == 2
    assert "--data: is 'lat\\udcfc', which is not UTF-8; rename" in capsys.readouterr().err
    argv = [str(room) if one == "p.pkl" else "." if one == "c" else one for one in (*READ_, "out")]
    argv[argv.index(str(room))] = str(room / "p.pkl")
    assert called(room / name, PICKLES, *argv[:-1], str(room / "out")) == 2
    assert "lat\\udcfc: has a name that is not UTF-8" in capsys.readouterr().err
    assert not (room / "out").exists()


def test_a_results_file_that_is_not_named_in_utf8(room, capsys):
    argv = (*RECALL, os.fsdecode(b"f\xfc.json"), "--json", "out.json")
    assert called(room, "experiments.evaluate", *argv) == 2
    assert "--detections: is 'f\\udcfc.json', which is not UTF-8" in capsys.readouterr().err


def test_every_flag_that_is_a_path_is_read_or_marked():
    files = {path for _, _, path in commands()}
    files |= set((ROOT / "experiments" / "bench").glob("*.py"))
    files |= {ROOT / "experiments" / "pipeline" / "options.py"}
    found = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name, kind in flags(node):
                if "Path" in ast.unparse(kind):
                    found.setdefault(name, []).append(path.name)
    assert found.keys() - READ == set(), {name: found[name] for name in found.keys() - READ}
    assert READ - found.keys() == set()  # the search itself finds them


def flags(node: ast.AST):
    """(name, type) of a dataclass's fields, and of the arguments of functions inside `main`."""
    if isinstance(node, ast.ClassDef):
        fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
        yield from ((one.target.id, one.annotation) for one in fields)
    if isinstance(node, ast.FunctionDef) and node.name == "main":
        for inner in (one for one in node.body if isinstance(one, ast.FunctionDef)):
            yield from ((one.arg, one.annotation) for one in inner.args.args)

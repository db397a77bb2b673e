"""Mutated stores that are packed or exported, lock files, and places that outputs are sent to."""

import functools
import os
import random
import shutil
import tempfile
from pathlib import Path

from tests.fuzz import judge, mutate, sandbox, sets
from tests.fuzz.targets import Job


def pack(room: Path, rng: random.Random) -> Job:
    """A store with one damaged file is packed, or a damaged pack is verified."""
    base = rng.choice((judge.base_store, base_pack))()
    shutil.copytree(base, room / "store")
    same = _damage(room / "store", rng)
    argv = ["--store", str(room / "store"), "--split", "val"]
    argv += ["--to", str(room / "out")] if base == judge.base_store() else ["--verify"]
    check = judge.only_if(same, "a damaged store was taken for whole")
    return Job("bridge.pack", tuple(argv), check)


def released_pickle(room: Path, rng: random.Random) -> Job:
    """A store with one damaged file is written as a pickle."""
    shutil.copytree(judge.base_store(), room / "store")
    sets.write_voc(room / "data")
    _damage(room / "store", rng)
    argv = ["write", "--data", "data", "--split", "val", "--store", "store"]
    argv = [str(room / one) if one in ("data", "store") else one for one in argv]
    return Job("bridge.released_pickles", (*argv, "--pickle", str(room / "out" / "p.pkl")))


def lock_file(room: Path, rng: random.Random) -> Job:
    """A folder whose lock file is damaged, a link, a pipe or a folder."""
    data, lock = sets.write_voc(room / "data"), room / "out" / ".weaksam.lock"
    lock.parent.mkdir()
    victim = rng.choice([path for path in sorted(data.rglob("*")) if path.is_file()])
    said = {"made_by": "voc_files", "pid": 1, "host": "a"}
    kinds = {
        "json": lambda: lock.write_bytes(mutate.json_text(said, rng)),
        "deep": lambda: lock.write_text("[" * rng.choice((300, 100_000))),
        "link": lambda: lock.symlink_to(victim),
        "hard": lambda: os.link(victim, lock),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lambda: lock.mkdir(),
    }
    kinds[rng.choice(list(kinds))]()
    (room / "found.json").write_text("[]")
    argv = ["--detections", room / "found.json", "--data", data, "--split", "val"]
    argv += ["--voc-files", room / "out"]
    return Job("experiments.evaluate", tuple(map(str, argv)))


def output_path(room: Path, rng: random.Random) -> Job:
    """An output is sent to what is read, what belongs to another, or to what no path is."""
    data = sets.write_voc(room / "data")
    shutil.copytree(judge.base_store(), room / "store")
    (room / "found.json").write_text("[]")
    (room / "out").mkdir()
    (room / "out" / "link").symlink_to(data)
    there = [path for path in sorted(room.rglob("*")) if "out" not in path.parts[-3:]]
    linked = room / "out" / "link.json"
    linked.symlink_to(rng.choice([path for path in there if path.is_file()]))
    odd = [room, linked, room / "out" / "link", room / "out" / "new.json", room / "out"]
    odd += [room / "out" / os.fsdecode(b"\xfc.json"), room / "out" / ("a" * 300), Path("a\0b")]
    odd += [data / "Annotations" / "new.json", data / "ImageSets" / "Main" / "new.json"]
    out = str(rng.choice(rng.choice((odd, there))))
    common = ["--data", str(data), "--split", "val"]
    found, store = ["--detections", str(room / "found.json")], ["--store", str(room / "store")]
    kinds = {
        "json": ("experiments.evaluate", [*common, *found, "--metric", "voc07", "--json", out]),
        "files": ("experiments.evaluate", [*common, *found, "--voc-files", out]),
        "pgt": ("experiments.pgt", [*common, *found, "--out", out]),
        "pickle": ("bridge.released_pickles", ["write", *common, *store, "--pickle", out]),
    }
    kind = rng.choice(list(kinds))
    if kind == "files" and "store" in Path(out).parts:  # new files beside a store are nobody's loss
        kind = "json"
    command, argv = kinds[kind]
    return Job(command, tuple(argv))


def _damage(store: Path, rng: random.Random) -> bool:
    """Mutates one file, or leaves all as they are; whether it did so."""
    path = rng.choice(sorted(path for path in store.rglob("*") if path.is_file()))
    before = path.read_bytes()
    after = before if rng.random() < 0.2 else mutate.raw(before, rng)
    path.write_bytes(after)
    return before == after


@functools.cache
def base_pack() -> Path:
    """The store of `judge.base_store`, packed."""
    room = Path(tempfile.mkdtemp(prefix="fuzz-"))
    argv = ["--store", judge.base_store(), "--split", "val", "--to", room / "pack"]
    ending = sandbox.run("bridge.pack", list(map(str, argv)), room, out=room / "pack")
    assert ending.status == 0, ending.stderr
    return room / "pack"


# How often each is drawn.
TARGETS = {pack: 3, released_pickle: 2, lock_file: 3, output_path: 6}

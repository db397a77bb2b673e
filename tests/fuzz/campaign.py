"""Makes mutants, runs each and judges how it ended."""

import importlib
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "helpers")]

# What the commands import, so that a fork has it.
PRELOADED = (
    *("bridge.clues.networks", "bridge.convert", "bridge.export", "bridge.proposals.export"),
    *(
        "bridge.pack",
        "bridge.released_pickles",
        "bridge.sam.networks",
        "experiments.custom",
        "experiments.evaluate",
    ),
    *(
        "experiments.pgt",
        "experiments.pipeline.graph",
        "pycocotools.cocoeval",
        "small_torchvision",
    ),
)


# What may be drawn from; each has its own mutants of a seed.
SETS = {"inputs": "tests.fuzz.targets", "outputs": "tests.fuzz.outputs"}


def work(seed: int, numbers: list[int], keep: Path | None, of: str = "inputs") -> list[dict]:
    """The endings of some mutants; of: a name in `SETS`."""
    for name in PRELOADED:
        importlib.import_module(name)
    shares = importlib.import_module(SETS[of]).TARGETS
    targets = [target for target, share in shares.items() for _ in range(share)]
    rows = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for number in numbers:
            rng = random.Random(f"{seed} {number}")
            rows.append(one(rng, targets, number, room=Path(scratch) / f"room{number}", keep=keep))
    return rows


def one(rng: random.Random, targets: list, number: int, room: Path, keep: Path | None) -> dict:
    """Makes a mutant, runs it and judges how it ended."""
    from tests.fuzz import sandbox

    room.mkdir()
    target = rng.choice(targets)
    job = target(room, rng)
    ending = sandbox.run(job.command, job.argv, room, out=room / "out")
    fault, judged = ending.fault, None
    if fault is None and ending.status == 0:
        said = job.check(room / "out")
        judged = said != "?"
        fault = None if said in (None, "?") else f"wrong: {said}"
    if fault and keep:
        shutil.copytree(room, keep / room.name, dirs_exist_ok=True)
    shutil.rmtree(room)
    last = ending.stderr.strip().splitlines()[-1:] or [""]
    return {
        "number": number,
        "target": target.__name__,
        "status": ending.status,
        "judged": judged,
        "fault": fault,
        "seconds": round(ending.seconds, 2),
        "said": ascii(last[0])[:300],
    }

"""What processes do besides training, as a program: `python turns_job.py CASE FOLDER`."""

import sys
import time
from pathlib import Path

from experiments.pipeline.runner import Runner, Stage
from weaksam_jax.cli import entry_point
from weaksam_jax.engine.distributed import (
    all_reduce_max,
    process,
    run_leader_first,
    run_on_leader,
    start,
)
from weaksam_jax.errors import BadInput
from weaksam_jax.interrupts import Terminated
from weaksam_jax.run_folder import RunFolder


def returns(folder):
    """Process 0 takes its time; the others get its result, and find what it wrote."""

    def work():
        time.sleep(1.5)
        (folder / f"by {process()[0]}").touch()
        return {"made": [1, 2.5]}

    print(
        run_on_leader(work),
        run_leader_first(lambda: len(list(folder.iterdir()))),
        all_reduce_max(process()[0]),
    )


def raises(folder, error=None):
    def work():
        raise error or BadInput("a file", "is bad", "mend it")

    run_on_leader(work)


def stages(folder):
    """Three stages; the second is done together. Prints what ran here."""
    ran = []

    def stage(name, **options):
        return Stage(name, 0, (), lambda: ran.append(name) or {name: process()[0]}, **options)

    three = stage("a"), stage("b", together=True), stage("c")
    # The second repeats nothing.
    metrics = [Runner(RunFolder(folder), 0).run(three) for _ in range(2)]
    print(ran, [{name: one[name] for name in "abc"} for one in metrics])


def dies(folder):
    """Process 1 fails alone, while process 0 waits for it in a collective."""
    if process()[0] == 1:
        raise BadInput("a disk", "is broken", "buy another")
    all_reduce_max(1)


def main(argv):
    case, folder = sys.argv[1:]
    start()
    cases = {
        "terminated": lambda folder: raises(folder, Terminated()),
        **{one.__name__: one for one in (returns, raises, stages, dies)},
    }
    cases[case](Path(folder))


if __name__ == "__main__":
    sys.exit(entry_point(main))

"""The stage graph: stages in order, each run once, resumed, or run again when it must.

A stage is done when `<out>/stages/<name>.json` carries its key: the fingerprint of its settings,
the seed and the keys of the stages before it that it reads. Its folder carries the key of the work
in it, too (`experiments.pipeline.work_folder`): a stage goes on from what was left by its own key,
deletes what was left by another, and touches nothing that no run made. So whatever file is damaged
or deleted and whenever a process is killed, old work never passes for new.

Figures that need truth are measured after the work; when the truth alone changes they are measured
again, and nothing else is done.

Several processes (`weaksam_jax.engine.distributed`) run the stages together: process 0 alone knows
what is done and does the work, all join in the stages that are done `together` (training).
"""

import functools
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.pipeline.work_folder import key_of, open_folder
from weaksam_jax import __version__
from weaksam_jax.engine.distributed import run_on_leader
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import fingerprint, read_json, sync_disk, write_json
from weaksam_jax.locks import Lock
from weaksam_jax.run_folder import RunFolder

LEDGER = "supervision"  # the part of metrics.json to which several stages add


def _nothing() -> dict:
    return {}


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    settings: JSON values; a change makes the stage run again. reads: names of the stages whose
    results it uses. run: does the work and returns its part of metrics.json. measure: the figures
    of the finished work, another part; truth: a JSON value that says which truth they were measured
    against, a change of which makes the stage measure again. owns_folder: whether `<out>/<name>` is
    its work, deleted when the stage must start afresh. optional: runs only when it is asked for by
    name. shows: names of optional stages whose results it uses where they are. together: every
    process runs it (but `measure`), and returns the metrics that process 0 has.
    """

    name: str
    settings: Any
    reads: tuple[str, ...]
    run: Callable[[], dict]
    measure: Callable[[], dict] = _nothing
    truth: Callable[[], Any] = _nothing
    owns_folder: bool = True
    optional: bool = False
    shows: tuple[str, ...] = ()
    together: bool = False


@dataclass
class Runner:
    """Runs stages in a run folder. lock: that of the folder, in process 0."""

    folder: RunFolder
    seed: int
    lock: Lock | None = None
    keys: dict[str, str] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)

    def key(self, stage: Stage) -> str:
        """The stage's fingerprint; needs the keys of the stages that it reads or shows."""
        before = [self.keys[name] for name in stage.reads if name in self.keys]
        before += [self.keys[name] for name in stage.shows if name in self.keys and self.done(name)]
        return fingerprint([stage.name, stage.settings, self.seed, before])

    def run(self, stages: Iterable[Stage], wanted: Iterable[str] | None = None) -> dict:
        """Runs the stages in order (only the `wanted` ones, if given); returns all metrics.

        Raises `BadInput` for a stage's folder that no run made, and when the run's folder is
        removed meanwhile.
        """
        wanted = None if wanted is None else set(wanted)
        self.stages = {stage.name: stage for stage in stages}
        for stage in self.stages.values():
            todo = run_on_leader(functools.partial(self._prepare, stage, wanted))
            if todo is not None:
                self._work(stage, todo)
        return run_on_leader(self.write_metrics)

    def _prepare(self, stage: Stage, wanted: set[str] | None) -> str | None:
        """What is to do now: "run" (its folder is ready for it), "measure" or nothing."""
        self.keys[stage.name] = self.key(stage)
        if stage.optional if wanted is None else stage.name not in wanted:
            return None
        self._require(stage)
        if not self.done(stage.name):
            self._open(stage)
            self.write_metrics()  # without the old figures, should this stop
            say(f"{stage.name}: running")
            return "run"
        if self._figures_hold(stage):
            say(f"{stage.name}: done before, skipped")
            return None
        self.write_metrics()
        say(f"{stage.name}: done before, measured again by another truth or rule")
        return "measure"

    def _open(self, stage: Stage) -> None:
        """Makes the folder of a stage ready. Where nothing of its own is left to go on from, what
        was made of the old results is not done any more."""
        path, key = self.folder.stage(stage.name), self.keys[stage.name]
        if stage.owns_folder and key_of(path) != key:
            for name in self._behind(stage.name):
                self.folder.mark(name).unlink(missing_ok=True)
        self.folder.mark(stage.name).unlink(missing_ok=True)
        if stage.owns_folder:
            open_folder(path, key)

    def _behind(self, name: str) -> set[str]:
        """The stages that use the results of this one, at first or second hand."""
        direct = {one.name for one in self.stages.values() if name in one.reads + one.shows}
        return direct.union(*map(self._behind, direct))

    def _work(self, stage: Stage, todo: str) -> None:
        begin = time.monotonic()
        try:
            metrics = {}
            if todo == "run":
                metrics = stage.run() if stage.together else run_on_leader(stage.run)
            figures = run_on_leader(stage.measure)
            result = {"metrics": metrics, "figures": figures}
            finish = self._finish if todo == "run" else self._measured
            run_on_leader(functools.partial(finish, stage, begin, result))
        except Exception as error:
            if self.lock is not None:
                self.lock.check()  # a folder that was removed is the cause of anything
            if isinstance(error, BadFile):
                self._doubt(error.file)
            raise

    def _finish(self, stage: Stage, begin: float, result: dict) -> None:
        seconds = round(time.monotonic() - begin, 2)
        if self.lock is not None:
            self.lock.check()
        if stage.owns_folder and key_of(self.folder.stage(stage.name)) != self.keys[stage.name]:
            hint = "run the same command again"
            raise BadInput(self.folder.stage(stage.name), "was removed while it was made", hint)
        sync_disk(self.folder.root)  # the mark must not outlive the work
        known = {"key": self.keys[stage.name], "seconds": seconds}
        self._mark(stage, known | result)
        say(f"{stage.name}: {seconds:.1f} s  {summary(result['metrics'] | result['figures'])}")

    def _measured(self, stage: Stage, begin: float, result: dict) -> None:
        self._mark(stage, self._marked(stage.name) | {"figures": result["figures"]})
        say(f"{stage.name}: {time.monotonic() - begin:.1f} s  {summary(result['figures'])}")

    def _mark(self, stage: Stage, content: dict) -> None:
        truth = {"truth": fingerprint(stage.truth())}
        write_json(self.folder.mark(stage.name), content | truth, indent=1)
        self.write_metrics()

    def _require(self, stage: Stage) -> None:
        for name in stage.reads:
            if name in self.keys and not self.done(name):
                problem = f"stage {stage.name} reads stage {name}, which is not finished here"
                hint = f"add {name} to --stages, or leave --stages out"
                raise BadInput(self.folder.root, problem, hint)

    def _doubt(self, file: Path) -> None:
        """A file of an earlier stage is bad: that stage and those after it are not done.

        So the same command makes the file again; these stages keep their folders and resume.
        """
        names, owner = list(self.keys), self.folder.stage_of(file)
        for name in names[names.index(owner) :] if owner in names else ():
            self.folder.mark(name).unlink(missing_ok=True)

    def write_metrics(self) -> dict:
        """Gathers the finished stages' metrics into metrics.json."""
        metrics: dict[str, Any] = {"seed": self.seed, "versions": versions(), "seconds": {}}
        for name in self.keys:
            if self.done(name) and self._figures_hold(self.stages[name]):
                mark = self._marked(name)
                found = mark["metrics"] | mark["figures"]
                if rows := metrics.get(LEDGER, {}) | found.get(LEDGER, {}):
                    found[LEDGER] = rows
                metrics |= found
                metrics["seconds"][name] = mark["seconds"]
        write_json(self.folder.metrics, metrics, indent=1)
        return metrics

    def done(self, name: str) -> bool:
        """Whether a stage of this run has finished with its present key, and its work is there."""
        key, path = self.keys[name], self.folder.stage(name)
        if self._marked(name).get("key") != key:
            return False
        return not self.stages[name].owns_folder or key_of(path) == key

    def _figures_hold(self, stage: Stage) -> bool:
        """Whether the figures of a stage that is done are those of the present truth."""
        return self._marked(stage.name).get("truth") == fingerprint(stage.truth())

    def _marked(self, name: str) -> dict:
        """What the mark of a stage says; empty for none, and for one that is damaged."""
        try:
            mark = read_json(self.folder.mark(name))
        except BadFile:
            return {}
        whole = isinstance(mark, dict) and {"key", "seconds", "metrics", "figures"} <= mark.keys()
        return mark if whole else {}


def say(text: str) -> None:
    """A line for the person who watches (stderr, as the progress bars)."""
    print(text, file=sys.stderr, flush=True)


def summary(metrics: dict) -> str:
    """The scalar metrics of a stage on one line."""

    def leaves(value: Any, name: str) -> Iterable[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from leaves(inner, f"{name}.{key}" if name else str(key))
        elif isinstance(value, int | float):
            yield f"{name} {value:.4g}"

    return "  ".join(item for item in leaves(metrics, "") if "per_class" not in item)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:3])), "weaksam-jax": __version__}
    for name in ("jax", "flax", "optax", "orbax-checkpoint", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

"""The stage graph: stages in order, each run once, resumed, or run again when it must.

A stage is done when `<out>/stages/<name>.json` carries its key: the fingerprint of its settings,
the seed and the keys of the stages before it that it reads. A stage that was interrupted has its
key in `<out>/stages/<name>.started`; it goes on from what it left when the key is still the same,
and starts from an empty folder when it is not.

Several processes (`weaksam_jax.engine.distributed`) run the stages together: process 0 alone knows
what is done and does the work, all join in the stages that are done `together` (training).
"""

import functools
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weaksam_jax import __version__
from weaksam_jax.engine.distributed import run_on_leader
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import fingerprint, read_json, write_json, write_text
from weaksam_jax.run_folder import RunFolder


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    settings: JSON values; a change makes the stage run again. reads: names of the stages whose
    results it uses. run: does the work and returns its part of metrics.json. owns_folder: whether
    `<out>/<name>` is its work, deleted when the stage must start afresh. optional: runs only when
    it is asked for by name. shows: names of optional stages whose results it uses where they are.
    together: every process runs it, and returns the metrics that process 0 has.
    """

    name: str
    settings: Any
    reads: tuple[str, ...]
    run: Callable[[], dict]
    owns_folder: bool = True
    optional: bool = False
    shows: tuple[str, ...] = ()
    together: bool = False


@dataclass
class Runner:
    """Runs stages in a run folder."""

    folder: RunFolder
    seed: int
    keys: dict[str, str] = field(default_factory=dict)

    def key(self, stage: Stage) -> str:
        """The stage's fingerprint; needs the keys of the stages that it reads or shows."""
        before = [self.keys[name] for name in stage.reads if name in self.keys]
        before += [self.keys[name] for name in stage.shows if name in self.keys and self.done(name)]
        return fingerprint([stage.name, stage.settings, self.seed, before])

    def run(self, stages: Iterable[Stage], wanted: Iterable[str] | None = None) -> dict:
        """Runs the stages in order (only the `wanted` ones, if given); returns all metrics."""
        wanted = None if wanted is None else set(wanted)
        for stage in stages:
            if run_on_leader(functools.partial(self._prepare, stage, wanted)):
                self._work(stage)
        return run_on_leader(self.write_metrics)

    def _prepare(self, stage: Stage, wanted: set[str] | None) -> bool:
        """Whether the stage is to run now; its folder is then ready for it."""
        self.keys[stage.name] = key = self.key(stage)
        if stage.optional if wanted is None else stage.name not in wanted:
            return False
        self._require(stage)
        done, started = (self.folder.marker(stage.name, one) for one in ("json", "started"))
        if self.done(stage.name):
            say(f"{stage.name}: done before, skipped")
            return False
        if done.exists() or (started.exists() and started.read_text() != key):
            # No stage has the empty key: killed from here on, the next call deletes again.
            write_text(started, "")
            done.unlink(missing_ok=True)
            if stage.owns_folder:
                shutil.rmtree(self.folder.stage(stage.name), ignore_errors=True)
        write_text(started, key)
        say(f"{stage.name}: running")
        return True

    def _work(self, stage: Stage) -> None:
        begin = time.monotonic()
        try:
            metrics = stage.run() if stage.together else run_on_leader(stage.run)
        except BadFile as error:
            self._doubt(error.file)
            raise
        seconds = round(time.monotonic() - begin, 2)
        run_on_leader(functools.partial(self._finish, stage, seconds, metrics))

    def _finish(self, stage: Stage, seconds: float, metrics: dict) -> None:
        key, done = self.keys[stage.name], self.folder.marker(stage.name, "json")
        write_json(done, {"key": key, "seconds": seconds, "metrics": metrics}, indent=1)
        self.folder.marker(stage.name, "started").unlink()
        self.write_metrics()
        say(f"{stage.name}: {seconds:.1f} s  {summary(metrics)}")

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
            self.folder.marker(name, "json").unlink(missing_ok=True)

    def write_metrics(self) -> dict:
        """Gathers the finished stages' metrics into metrics.json."""
        metrics: dict[str, Any] = {"seed": self.seed, "versions": versions(), "seconds": {}}
        for name in self.keys:
            if self.done(name):
                stage = read_json(self.folder.marker(name, "json"))
                metrics |= stage["metrics"]
                metrics["seconds"][name] = stage["seconds"]
        write_json(self.folder.metrics, metrics, indent=1)
        return metrics

    def done(self, name: str) -> bool:
        """Whether a stage of this run has finished with its present key."""
        marker = self.folder.marker(name, "json")
        return marker.exists() and read_json(marker)["key"] == self.keys[name]


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

"""A cell of an ablation: a retraining, and the beginning that it shares with other cells."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from experiments.paper.ablation_rows import Method, common_steps, undropped
from experiments.paper.seed_tables import SeedRuns, open_folder
from experiments.pipeline import detectors, ledger
from experiments.pipeline import metrics as measure
from experiments.pipeline.detectors import RetrainConfig
from experiments.pipeline.run import Run
from experiments.pipeline.stages import detect_retrained, pseudo_boxes
from weaksam_jax.engine.checkpoint import CHECKPOINTS
from weaksam_jax.engine.step import Params
from weaksam_jax.errors import BadFile
from weaksam_jax.files import file_fingerprint, write_json
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.settings import to_plain


@dataclass(frozen=True)
class Cells:
    """The work of every cell; see `experiments.paper.seed_tables.run_cells`."""

    runs: SeedRuns
    methods: dict[str, Method]
    out: Path

    def inputs(self, seed: int) -> list[str]:
        """Fingerprints of what a cell reads."""
        config = next(iter(self.methods.values())).retrain  # all start alike
        return [*self.runs.images(), *weights_of(self.runs.of(seed), config)]

    def work(self, name: str, seed: int, folder: Path) -> dict:
        """Retrains and measures; returns AP in percent."""
        run, method = self.runs.of(seed), self.methods[name]
        pgt = pseudo_boxes(run, method.pgt)
        until = common_steps(self.methods, name)
        if until and not (folder / CHECKPOINTS).exists():
            self._begin(method, seed, until, pgt=pgt, folder=folder)
        detector = detectors.retrainer(method.retrain, run.data.splits["train"].classes)
        params = train(run, pgt, method.retrain, folder=folder, seed=seed)
        found = detect_retrained(run, detector, params)
        write_json(RunFolder(folder.parent).detections(folder.name, "test"), found)
        shutil.rmtree(folder / CHECKPOINTS)
        figures = measure.average_precisions(found, run.data.truth("test"), run.config.ap50)
        return figures | {"started_from": ledger.retrained_from(run, method.retrain)}

    def _begin(self, method: Method, seed: int, until: int, pgt: dict, folder: Path) -> None:
        """Puts the checkpoints of the common beginning into `folder`."""
        plain, common = undropped(method), self.out / f"before_drop-{seed}"
        open_folder(common, [to_plain(plain), until, seed, self.inputs(seed)])
        run, where = self.runs.of(seed), {"folder": common, "seed": seed}
        train(run, pgt, plain.retrain, until=until, **where)
        copy_folder(common / CHECKPOINTS, folder / CHECKPOINTS)


def train(
    run: Run,
    pgt: dict,
    config: RetrainConfig,
    *,
    folder: Path,
    seed: int,
    until: int | None = None,
) -> Params:
    """The parameters of a retraining on the run's training images."""
    split, allowed = run.data.splits["train"], run.options.allow_supervision
    start = detectors.retrain_start(run.folder, config, allowed)
    detector, how = detectors.retrainer(config, split.classes), {"folder": folder, "seed": seed}
    return detectors.train_retrainer(detector, pgt, split, start=start, until=until, **how)


def weights_of(run: Run, config: RetrainConfig) -> list[str]:
    """Fingerprints of what a cell reads of its run; `BadInput` when the MIL detector is missing."""
    paths = [run.folder.detections("wsod", "train"), *start_files(run, config)]
    for path in paths:
        if not path.exists():
            raise BadFile(path, "does not exist", "finish the run's stage wsod (or give weights)")
    return [file_fingerprint(path) for path in paths]


def start_files(run: Run, config: RetrainConfig) -> list[Path]:
    """Where a retraining's start may lie, there or not: the MIL detector, what `optim.init`
    names."""
    init = detectors.init_file(config)
    return [run.folder.weights("wsod"), *([] if init is None else [init])]


def copy_folder(source: Path, target: Path) -> None:
    """A copy that is whole or not there at all."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)

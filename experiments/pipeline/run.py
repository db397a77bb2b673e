"""A run: its folder, options and data set, for the stages and for commands that open one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.detectors import RetrainConfig, retrain_kinds
from experiments.pipeline.options import PipelineOptions, read_settings
from weaksam_jax.data.datasets import open_tags, open_truth, split_names, truth_fingerprint
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.run_folder import OWN_PROPOSALS, Role, RunFolder


@dataclass(frozen=True)
class RunData:
    """The data set of a run, opened when it is needed. path: a folder, or tfds:NAME; train, test:
    names of splits (None: the data set's own)."""

    path: str | Path
    train: str | None = None
    test: str | None = None

    @cached_property
    def names(self) -> Mapping[Role, str]:
        """The names of both splits."""
        chosen = {"train": self.train, "test": self.test}
        found = {} if all(chosen.values()) else split_names(self.path)
        return {role: name or found[role] for role, name in chosen.items()}

    @cached_property
    def splits(self) -> Mapping[Role, TagSplit]:
        """Tags of both splits: all that training and prediction see."""
        return {role: open_tags(self.path, name) for role, name in self.names.items()}

    @cached_property
    def truths(self) -> Mapping[Role, TruthSplit | None]:
        """Boxes and masks of both splits, for measuring; None for a data set of tags alone."""
        return {role: open_truth(self.path, name) for role, name in self.names.items()}

    def truth(self, role: Role) -> TruthSplit:
        """Boxes and masks of a split; `BadInput` for a data set of tags alone."""
        if self.truths[role] is None:
            raise BadInput(self.path, "has no boxes to compare with", "give a data set with truth")
        return self.truths[role]


@dataclass(frozen=True)
class Run:
    """A run folder, what it was asked to hold, and its data set."""

    folder: RunFolder
    options: PipelineOptions
    data: RunData

    @property
    def config(self) -> PipelineConfig:
        """Settings of every stage."""
        return self.options.settings

    @property
    def retrainings(self) -> dict[str, RetrainConfig]:
        """Stage -> config of every detector that is retrained."""
        stages = retrain_kinds(self.options.retrain)
        return {stage: getattr(self.config, stage) for stage in stages}

    @property
    def seed(self) -> int:
        return self.options.seed

    @cached_property
    def judged(self) -> list:
        """What decides figures beside the work: the truth of both splits, and the rule of AP50."""
        names, cache = self.data.names.values(), self.folder.hashes
        return [
            self.config.ap50,
            *(truth_fingerprint(self.data.path, name, cache) for name in names),
        ]

    @property
    def exports(self) -> bool:
        """Whether the run makes its own proposals."""
        return self.options.proposals in OWN_PROPOSALS

    @property
    def proposals(self) -> Path:
        """The store of its proposals."""
        return self.folder.proposal_store(self.options.proposals)

    @property
    def clues(self) -> Path:
        """The store of what the clue network says of each image."""
        return self.folder.clue_store(self.options.proposals)


def new_run(options: PipelineOptions) -> Run:
    """The run that these options ask for, in `options.out`."""
    folder, config = RunFolder(options.out), options.settings
    path: str | Path = options.data
    if options.data == "mini":
        path = folder.mini_set
    elif not options.data.startswith("tfds:"):
        path = Path(options.data)
    return Run(folder, options, RunData(path, config.train_split, config.test_split))


def open_run(root: Path, data: str | None = None) -> Run:
    """The run in a folder.

    data: the data set, where it is not at the place that the run knows; "mini": the set that the
    run wrote itself. Raises `BadInput` when the folder is no run, or of another version.
    """
    folder = RunFolder(Path(root))
    if not folder.settings.exists():
        hint = "name the run folder of a main job, such as runs/mini-mini"
        raise BadInput(root, "is no run folder (it has no settings.json)", hint)
    options = read_settings(folder.settings)
    return new_run(replace(options, out=folder.root, data=data or options.data))

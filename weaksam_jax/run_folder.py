"""Names of the files of a run folder: the one place for stages, report, commands and the API."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weaksam_jax import runlog

Role = Literal["train", "test"]
# Values of --proposals that mean a store of the run's own; any other is the folder of a store.
OWN_PROPOSALS = ("sam", "selective_search")


@dataclass(frozen=True)
class RunFolder:
    """Paths below `root`; nothing is read or written here."""

    root: Path

    @property
    def own_files(self) -> tuple[str, ...]:
        """Names in `root` of what a run writes beside its stages' folders."""
        return ("settings.json", "metrics.json", runlog.FILE, "stages", "backbone")

    @property
    def settings(self) -> Path:
        """Every flag and setting of the run (`--config` reads it)."""
        return self.root / "settings.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def log(self) -> Path:
        return self.root / runlog.FILE

    @property
    def report(self) -> Path:
        return self.root / "report" / "index.html"

    @property
    def mini_set(self) -> Path:
        """The embedded data set, where the run uses it."""
        return self.root / "data" / "VOC2007"

    @property
    def hashes(self) -> Path:
        """What the content of the data set's files was, so that they are read once."""
        return self.root / "stages" / "content.json"

    def stage(self, name: str) -> Path:
        """The folder of a stage's work."""
        return self.root / name

    def stage_of(self, path: Path) -> str | None:
        """The stage whose folder a path lies in, as far as its name tells; None outside."""
        inner = path.resolve()
        root = self.root.resolve()
        return inner.relative_to(root).parts[0] if root in inner.parents else None

    def mark(self, stage: str) -> Path:
        """Key, seconds and metrics of a finished stage."""
        return self.root / "stages" / f"{stage}.json"

    def backbone(self, name: str) -> Path:
        """ImageNet weights that an installed package brought, converted."""
        return self.root / "backbone" / f"{name}.safetensors"

    def clue_network(self, kind: Literal["weaktr", "lite_cam"]) -> Path:
        """Weights of the clue network that the run trained."""
        return self.clues / f"{kind}.safetensors"

    @property
    def clues(self) -> Path:
        """Clue network, and stored maps of each image when the run makes its own proposals."""
        return self.root / "clues"

    def proposal_store(self, source: str) -> Path:
        """Where the proposals are; source: the value of --proposals."""
        return self.root / "proposals" if source in OWN_PROPOSALS else Path(source)

    def clue_store(self, source: str) -> Path:
        """Where the maps of each image are: this run's own, or beside the store made elsewhere."""
        return self.clues if source in OWN_PROPOSALS else Path(source) / "clues"

    def weights(self, stage: str) -> Path:
        """The detector of stage wsod, retrain, ..."""
        return self.root / stage / "params.safetensors"

    def detections(self, stage: str, role: Role) -> Path:
        """COCO results of that detector on the training or the test split."""
        return self.root / stage / f"detections_{role}.json"

    def pseudo_boxes(self, name: Literal["pgt", "top1"] = "pgt") -> Path:
        return self.root / "pgt" / f"{name}.json"

    @property
    def pseudo_masks(self) -> Path:
        return self.root / "masks" / "pseudo.json"

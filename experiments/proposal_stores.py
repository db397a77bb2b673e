"""The proposals that `experiments.proposals` compares: stores given, and stores made for it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from bridge.presets import PresetName
from bridge.proposals import ProposalSettings, reduce_boxes
from weaksam_jax.data.records import TagSplit, TruthRecord
from weaksam_jax.data.store import SOURCES, Proposals, read_manifest, read_proposals
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json, write_json


@dataclass(frozen=True)
class Stored:
    """The proposals of the chosen images, in their order.

    reduction: settings of the measures that act on all sources together and are still to be applied
    (`reduce_boxes`); None: they were. seconds: of generation, an image; None: not measured.
    made_with: what the table says of the store.
    """

    name: str
    proposals: list[Proposals]
    reduction: ProposalSettings | None
    seconds: float | None
    made_with: dict

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that some box has, in the order of `SOURCES`."""
        counts = sum(np.bincount(one.source, minlength=len(SOURCES)) for one in self.proposals)
        return tuple(name for name, count in zip(SOURCES, counts, strict=True) if count)

    def of(self, sources: Sequence[str]) -> list[Proposals]:
        """The proposals that SAM prompted by these sources alone gives, an entry an image."""
        wanted = [SOURCES.index(name) for name in sources]
        chosen = [one.select(np.isin(one.source, wanted)) for one in self.proposals]
        if self.reduction is None:
            return chosen
        return [one.select(reduce_boxes(vars(one), self.reduction)) for one in chosen]

    def boxes(self, sources: Sequence[str]) -> list[np.ndarray]:
        """Boxes `[n, 4]` an image of `of(sources)`."""
        return [one.boxes for one in self.of(sources)]


def given(name: str, root: Path, split: TagSplit) -> Stored:
    """A finished store; `BadInput` when it is not finished or lacks an image."""
    manifest = read_manifest(root, split.split)
    if manifest is None:
        path = root / split.split / "manifest.json"
        cure = f"finish python -m bridge.export --split {split.split} --out {root}"
        raise BadInput(path, "does not exist", cure)
    return _read(name, root, split, None, None, {"store": str(root)})


def made(
    split: TagSplit,
    networks: Sequence[tuple[str, Path | None]],
    sam: str,
    preset: PresetName,
    root: Path,
) -> list[Stored]:
    """Exports with each clue network (None: the grid alone) what `root/<name>` lacks; reads it.

    What acts on all sources together is left to `Stored.of`, and no masks are stored.
    """
    # Inside: torch takes seconds, and a table of finished stores does not need it.
    from bridge.export import ExportSettings, clue_network
    from bridge.sam import load_sam

    settings = ExportSettings.preset(preset, labels=_labels(split))
    whole, reduction = settings.proposals, settings.proposals
    whole = replace(whole, min_side=0, dedupe_nms=None, max_boxes=None, with_masks=False)
    loaded = [None if path is None else clue_network(path, preset, split) for _, path in networks]
    model, found = load_sam(sam), []
    for (name, path), network in zip(networks, loaded, strict=True):
        seconds = _export(split, network, model, replace(settings, proposals=whole), root / name)
        how = {"sam": sam, "preset": preset, "clues": None if path is None else str(path)}
        found.append(_read(name, root / name, split, reduction, seconds, how))
    return found


def searched(split: TagSplit, root: Path) -> Stored:
    """Selective search of every image, in `root/selective_search`."""
    from bridge.export import ExportSettings

    settings = ExportSettings(source="selective_search")
    place = root / "selective_search"
    seconds = _export(split, None, None, settings, place)
    how = {f.name: getattr(settings.search, f.name) for f in fields(settings.search)}
    return _read("selective search", place, split, None, seconds, how)


def only(record: TruthRecord, keep: np.ndarray) -> TruthRecord:
    """A record with the objects where `keep` (bool `[n]`) is set."""
    columns = ("boxes", "labels", "difficult", "crowd")
    masks = record.masks
    if masks is not None:
        masks = tuple(mask for mask, kept in zip(masks, keep, strict=True) if kept)
    return replace(record, masks=masks, **{name: getattr(record, name)[keep] for name in columns})


def _labels(split: TagSplit) -> str:
    """Tags on a training split, predicted classes elsewhere: the rule of `bridge.export`."""
    return "tags" if split.split.startswith("train") else "predicted"


def _export(split: TagSplit, network, sam, settings, root: Path) -> float | None:
    """Exports what is missing; returns the seconds an image of all calls that wrote some.

    Reading photos and writing files count, loading the networks does not.
    """
    from bridge.export import export_split

    report = export_split(split, network, sam, settings, root, root / "clues")
    path = root / f"seconds-{split.split}.json"
    job = read_manifest(root, split.split)["fingerprint"]
    known = read_json(path) if path.exists() else {}
    if known.get("job") != job:
        known = {"job": job, "images": 0, "seconds": 0.0}
    if report.written:
        known["images"] += report.written
        known["seconds"] += report.seconds
        write_json(path, known)
    return known["seconds"] / known["images"] if known["images"] else None


def _read(
    name: str,
    root: Path,
    split: TagSplit,
    reduction: ProposalSettings | None,
    seconds: float | None,
    made_with: dict,
) -> Stored:
    found = [read_proposals(root, split.split, record.image_id) for record in split.records]
    for record, one in zip(split.records, found, strict=True):
        if (one.width, one.height) != (record.width, record.height):
            problem = f"image {record.image_id} is {one.width} x {one.height} in the store"
            cure = f"give the store of {split.dataset} ({record.width} x {record.height} there)"
            raise BadInput(root, problem, cure)
    return Stored(name, found, reduction, seconds, made_with)

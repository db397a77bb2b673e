"""The proposals that `experiments.paper.proposals` compares: stores given, and made for it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from bridge.proposals.presets import PresetName
from bridge.proposals.selection import ProposalConfig, rederive
from weaksam_jax.data.records import TagSplit
from weaksam_jax.data.store import SOURCES, Proposals, manifest_path, read_manifest, read_proposals
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json, write_json


@dataclass(frozen=True)
class Stored:
    """The proposals of the chosen images, in their order.

    settings: those that the proposals were made with, for `rederive`; None: not every image has its
    decoded masks. seconds: of generation, per image; None: not measured. made_with: what the table
    says of the store.
    """

    name: str
    proposals: list[Proposals]
    settings: ProposalConfig | None
    seconds: float | None
    made_with: dict

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that some box has, in the order of `SOURCES`."""
        counts = sum(np.bincount(one.source, minlength=len(SOURCES)) for one in self.proposals)
        return tuple(name for name, count in zip(SOURCES, counts, strict=True) if count)

    def of(self, sources: Sequence[str]) -> list[Proposals]:
        """The proposals that SAM prompted by these sources alone gives, one entry per image.

        Without `settings`: those of the stored ones that are of these sources.
        """
        if set(sources) == set(SOURCES):
            return self.proposals
        if self.settings is not None:
            return [rederive(one, self.settings, sources) for one in self.proposals]
        wanted = [SOURCES.index(name) for name in sources]
        return [one.select(np.isin(one.source, wanted)) for one in self.proposals]

    def boxes(self, sources: Sequence[str]) -> list[np.ndarray]:
        """Boxes `[n, 4]` of each image of `of(sources)`."""
        return [one.boxes for one in self.of(sources)]


def given(name: str, root: Path, split: TagSplit) -> Stored:
    """A finished store; `BadInput` when it is not finished or lacks an image."""
    manifest = read_manifest(root, split.split)
    if manifest is None:
        path = manifest_path(root, split.split)
        hint = f"finish python -m bridge.export --split {split.split} --out {root}"
        raise BadInput(path, "does not exist", hint)
    return _read(name, root, split, seconds=None, made_with={"store": str(root)})


def made(
    split: TagSplit,
    networks: Sequence[tuple[str, Path | None]],
    sam: str,
    preset: PresetName,
    labels: str,
    root: Path,
) -> list[Stored]:
    """Exports with each clue network (None: the grid alone) what `root/<name>` lacks; reads it.

    labels: as in `bridge.proposals.export.ExportConfig`. The decoded masks are kept for
    `Stored.of`, without their pixels.
    """
    # Inside: torch takes seconds, and a table of finished stores does not need it.
    from bridge.proposals.export import ExportConfig
    from bridge.proposals.presets import clue_network
    from bridge.sam.networks import load_sam

    settings = ExportConfig.preset(preset, labels=labels)
    kept = replace(settings.proposals, with_masks=False, keep_decoded=True)
    settings = replace(settings, proposals=kept)
    loaded = [None if path is None else clue_network(path, preset, split) for _, path in networks]
    model, found = load_sam(sam), []
    for (name, path), network in zip(networks, loaded, strict=True):
        seconds = _export(split, network, model, settings=settings, root=root / name)
        how = {"sam": sam, "preset": preset, "clues": None if path is None else str(path)}
        found.append(_read(name, root / name, split, seconds=seconds, made_with=how))
    return found


def searched(split: TagSplit, root: Path) -> Stored:
    """Selective search of every image, in `root/selective_search`."""
    from bridge.proposals.export import ExportConfig

    settings = ExportConfig(source="selective_search")
    place = root / "selective_search"
    seconds = _export(split, None, None, settings=settings, root=place)
    how = {f.name: getattr(settings.search, f.name) for f in fields(settings.search)}
    return _read("selective search", place, split, seconds=seconds, made_with=how)


def _export(split: TagSplit, network, sam, settings, root: Path) -> float | None:
    """Exports what is missing; returns the seconds per image of all calls that wrote some.

    Reading photos and writing files count, loading the networks does not.
    """
    from bridge.proposals.export import export_split

    report = export_split(split, network, sam, config=settings, root=root, clue_root=root / "clues")
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


def _read(name: str, root: Path, split: TagSplit, seconds: float | None, made_with: dict) -> Stored:
    found = [read_proposals(root, split.split, record) for record in split.records]
    settings = None
    if found and all(one.decoded is not None for one in found):
        settings = export_settings(root, split)
    return Stored(name, found, settings, seconds=seconds, made_with=made_with)


def export_settings(root: Path, split: TagSplit) -> ProposalConfig:
    """The settings of the proposals that an export wrote into its manifest."""
    try:
        values = read_manifest(root, split.split)["settings"]["proposals"]
        return ProposalConfig(**{**values, "peak_tokens": tuple(values["peak_tokens"])})
    except (KeyError, TypeError) as error:
        path = manifest_path(root, split.split)
        problem = f"does not say with which settings its masks were chosen ({error})"
        raise BadInput(path, problem, "export the store again") from error

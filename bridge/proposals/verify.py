"""Whether a store is what its manifest says: every file whole, of one export, boxes inside."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from weaksam_jax.data.packs import INDEX, open_pack
from weaksam_jax.data.records import TagRecord
from weaksam_jax.data.store import (
    SOURCES,
    Proposals,
    check_size,
    manifest_path,
    parse_proposals,
    proposal_path,
    read_manifest,
    read_stored,
)
from weaksam_jax.errors import BadInput
from weaksam_jax.progress import progress_bar

_HINT = "run the same bridge.export again, which makes bad files anew (or pack again)"


def verify_split(
    root: str | Path,
    split: str,
    clue_root: str | Path | None = None,
    records: Sequence[TagRecord] | None = None,
    progress: bool = True,
) -> int:
    """Reads every file of a split, in either layout; returns the number of images.

    Raises `BadInput` that names the first bad file and counts the others: a file that is missing,
    damaged (one byte is enough), of another export than the manifest's, or not in the manifest;
    boxes outside the image or empty; means that are not the manifest's. clue_root: where its
    clues are (None: `<root>/clues` if that has the split), each of the same fingerprint as the
    image's proposals. records: those of the data set's split, whose ids must be the manifest's, and
    whose sizes the files'.
    """
    root = Path(root)
    where = manifest_path(root, split)
    manifest = read_manifest(root, split)
    if manifest is None:
        raise BadInput(where, "does not exist", "finish the export; the manifest comes last")
    if clue_root is None and (root / "clues" / split).is_dir():
        clue_root = root / "clues"
    bad, counts = [], np.zeros((len(manifest["images"]), len(SOURCES)), int)
    known = {record.image_id: record for record in records or ()}
    bar = progress_bar(manifest["images"], f"verify {split}", disable=not progress)
    for row, image_id in enumerate(bar):
        try:
            counts[row] = _verify_image(
                root, split, image_id, manifest=manifest, clue_root=clue_root, known=known
            )
        except BadInput as error:
            bad.append((error.path, error.problem))
    for store in filter(None, (root, clue_root and Path(clue_root))):
        bad += _strangers(store, split, manifest)
        pack = open_pack(store / split)
        bad += [] if pack is None else [(path, "is damaged") for path in pack.damaged()]
    if records is not None and sorted(known) != manifest["images"]:
        bad.append((where, "lists other images than the data set"))
    if not bad:  # the counts are only complete when every file could be read
        bad += [(where, problem) for problem in _wrong_means(manifest, counts)]
    if bad:
        path, problem = bad[0]
        raise BadInput(path, f"{problem} (bad files: {len(bad)})", _HINT)
    return len(manifest["images"])


def _verify_image(
    root: Path,
    split: str,
    image_id: int,
    manifest: dict,
    clue_root: str | Path | None,
    known: Mapping[int, TagRecord],
) -> np.ndarray:
    """Boxes by source, int `[len(SOURCES)]`, of one image; `BadInput` for what is wrong with it."""
    path = proposal_path(root, split, image_id)
    arrays, metadata = read_stored(root, split, image_id)
    proposals = parse_proposals(arrays, metadata, image_id, path=path)
    if metadata.get("job") != manifest.get("fingerprint"):
        raise BadInput(path, "is of another export than the manifest", _HINT)
    if problem := _fault(proposals):
        raise BadInput(path, problem, _HINT)
    if image_id in known:
        check_size([proposals.height, proposals.width], known[image_id], path)
    if clue_root is not None:
        clue_path = proposal_path(clue_root, split, image_id)
        _, of_clues = read_stored(clue_root, split, image_id)
        if of_clues.get("fingerprint") != metadata.get("fingerprint"):
            raise BadInput(clue_path, "is of another export than the image's proposals", _HINT)
    return np.bincount(proposals.source, minlength=len(SOURCES))


def _fault(proposals: Proposals) -> str | None:
    """What no export would write, beside what no reader takes; None: nothing."""
    low, high = proposals.boxes[:, :2], proposals.boxes[:, 2:]
    if not ((low >= 0).all() and (high <= [proposals.width, proposals.height]).all()):
        return "has a box outside the image"
    if not (high > low).all():
        return "has an empty box"
    if not (proposals.prompt < len(proposals.points)).all():
        return "has a box of a prompt that it does not hold"
    try:
        proposals.rles()
    except BadInput as error:
        return error.problem
    return None


def _strangers(root: Path, split: str, manifest: dict) -> Iterator[tuple[Path, str]]:
    """Files of images that the manifest does not list."""
    listed = set(manifest["images"])
    for path in sorted((root / split).glob("*/[!.]*.safetensors")):
        if not path.stem.isdecimal() or int(path.stem) not in listed:
            yield path, "is not in the manifest"
    pack = open_pack(root / split)
    if pack is not None and pack.images != manifest["images"]:
        yield root / split / INDEX, "lists other images than the manifest"


def _wrong_means(manifest: dict, counts: np.ndarray) -> Iterator[str]:
    """What the manifest says of the number of boxes and is not so."""
    means = counts.mean(0) if len(counts) else np.zeros(len(SOURCES))
    said = {"": manifest.get("per_image")}
    if isinstance(sources := manifest.get("per_source"), Mapping):
        said |= sources
    for name, mean in zip(("", *SOURCES), (means.sum(), *means), strict=True):
        value = said.get(name, 0)
        if not isinstance(value, int | float) or not np.isclose(value, mean):
            yield f"says {value} {name} boxes per image, there are {mean:g}".replace("  ", " ")

"""Whether a store is what its manifest says: every file whole, of one export, boxes inside."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from weaksam_jax.data.packs import INDEX, open_pack
from weaksam_jax.data.store import (
    SOURCES,
    Proposals,
    parse_proposals,
    proposal_path,
    read_manifest,
    read_stored,
)
from weaksam_jax.errors import BadInput

_HINT = "delete what is bad and run the same bridge.export again"


def verify_split(
    root: str | Path,
    split: str,
    clue_root: str | Path | None = None,
    images: Sequence[int] | None = None,
    progress: bool = True,
) -> int:
    """Reads every file of a split, in either layout; returns the number of images.

    Raises `BadInput` that names the first bad file and counts the others: a file that is missing,
    damaged, of another export than the manifest's, or not in the manifest; boxes outside the image
    or empty; columns of unequal length; means that are not the manifest's. clue_root: where its
    clues are (None: `<root>/clues` if that has the split), each of the same fingerprint as the
    image's proposals. images: the ids of the data set's split, which must be the manifest's.
    """
    root = Path(root)
    where = root / split / "manifest.json"
    manifest = read_manifest(root, split)
    if manifest is None:
        raise BadInput(where, "does not exist", "finish the export; the manifest comes last")
    if clue_root is None and (root / "clues" / split).is_dir():
        clue_root = root / "clues"
    bad, counts = [], np.zeros((len(manifest["images"]), len(SOURCES)), int)
    bar = tqdm(manifest["images"], desc=f"verify {split}", unit="images", disable=not progress)
    for row, image_id in enumerate(bar):
        try:
            counts[row] = _verify_image(
                root, split, image_id, manifest=manifest, clue_root=clue_root
            )
        except BadInput as error:
            bad.append((error.path, error.problem))
    bad += _strangers(root, split, manifest)
    if clue_root is not None:
        bad += _strangers(Path(clue_root), split, manifest)
    if images is not None and sorted(images) != manifest["images"]:
        bad.append((where, "lists other images than the data set"))
    if not bad:  # the counts are only complete when every file could be read
        bad += [(where, problem) for problem in _wrong_means(manifest, counts)]
    if bad:
        path, problem = bad[0]
        raise BadInput(path, f"{problem} (bad files: {len(bad)})", _HINT)
    return len(manifest["images"])


def _verify_image(
    root: Path, split: str, image_id: int, manifest: dict, clue_root: str | Path | None
) -> np.ndarray:
    """Boxes by source, int `[len(SOURCES)]`, of one image; `BadInput` for what is wrong with it."""
    path = proposal_path(root, split, image_id)
    arrays, metadata = read_stored(root, split, image_id)
    try:
        proposals = parse_proposals(arrays, metadata, image_id, path=path)
    except (KeyError, ValueError) as error:
        raise BadInput(path, f"lacks a column ({error})", _HINT) from error
    if metadata.get("job") != manifest["fingerprint"]:
        raise BadInput(path, "is of another export than the manifest", _HINT)
    problem = _fault(proposals, arrays)
    if problem:
        raise BadInput(path, problem, _HINT)
    if clue_root is not None:
        _, of_clues = read_stored(clue_root, split, image_id)
        if of_clues.get("fingerprint") != metadata.get("fingerprint"):
            clue_path = proposal_path(clue_root, split, image_id)
            raise BadInput(clue_path, "is of another export than the image's proposals", _HINT)
    return np.bincount(proposals.source, minlength=len(SOURCES))


def _fault(proposals: Proposals, arrays: dict[str, np.ndarray]) -> str | None:
    """What is wrong with the columns of one image; None: nothing."""
    count, boxes = len(proposals), proposals.boxes
    for name in ("source", "prompt", "token", "predicted_iou", "stability"):
        if getattr(proposals, name).shape != (count,):
            return f"has {count} boxes and {name} of shape {getattr(proposals, name).shape}"
    if boxes.shape != (count, 4) or not np.isfinite(boxes).all():
        return "has boxes that are no four finite numbers"
    low, high = boxes[:, :2], boxes[:, 2:]
    if not ((low >= 0).all() and (high <= [proposals.width, proposals.height]).all()):
        return "has a box outside the image"
    if not (high > low).all():
        return "has an empty or inverted box"
    if (proposals.source >= len(SOURCES)).any():
        return "has a box of an unknown source"
    if not ((proposals.prompt >= -1) & (proposals.prompt < len(proposals.points))).all():
        return "has a box of a prompt that it does not hold"
    if proposals.masks is not None:
        offsets = arrays["rle_offsets"]
        if len(offsets) != count + 1 or any(b <= a for a, b in pairwise(offsets)):
            return f"has {count} boxes and {len(offsets) - 1} masks, or an empty mask"
        if offsets[-1] != len(arrays["rle_bytes"]):
            return "has masks that are cut short"
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
    if not np.isclose(manifest["per_image"], means.sum()):
        yield f"says {manifest['per_image']:g} boxes per image, there are {means.sum():g}"
    for name, mean in zip(SOURCES, means, strict=True):
        if not np.isclose(manifest["per_source"].get(name, 0), mean):
            yield f"says {manifest['per_source'].get(name, 0):g} {name} boxes, there are {mean:g}"

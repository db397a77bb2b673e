"""The proposal store: one safetensors file per image, written by `bridge`, read by `weaksam_jax`.

Layout: `<root>/<split>/<last two digits of the id>/<image_id>.safetensors`, and
`<root>/<split>/manifest.json`, which is written last and therefore means "complete". A finished
split may be packed (`weaksam_jax.data.packs`): the same files as records of a few large ones. The
readers here take either layout, a file of its own first. Every file has a checksum of itself, which
every reader looks at (`weaksam_jax.data.sealed`; it takes less time than reading).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from weaksam_jax.data.masks import are_codes
from weaksam_jax.data.packs import open_pack
from weaksam_jax.data.records import TagRecord, TruthRecord
from weaksam_jax.data.sealed import (
    is_sealed_arrays,
    is_sealed_json,
    open_arrays,
    read_sealed_json,
    seal_arrays,
    write_sealed_json,
)
from weaksam_jax.data.store_checks import SOURCES, clue_fault, column_fault, ids_fit
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import check_replaced, make_folder, read_bytes, sync_disk, write_bytes

VERSION = "2"
IMAGE = "image"  # the id, in the metadata of every file
# Sources whose boxes have no predicted IoU and stability of SAM.
UNRATED = (SOURCES.index("selective_search"), SOURCES.index("imported"))
_COLUMNS = ("boxes", "source", "prompt", "token", "predicted_iou", "stability")


@dataclass(frozen=True)
class DecodedMasks:
    """Every mask that SAM decoded for an image, before any threshold and NMS (no pixels).

    From these rows `bridge.proposals.selection.rederive` makes the proposals of other settings.
    Columns as in `Proposals`, in prompt order, but boxes are uint16 (int32 for sides above 65535
    pixels) and those of empty masks are zero. stability_offset: the logit offset that stability was
    measured with.
    """

    boxes: np.ndarray
    source: np.ndarray
    prompt: np.ndarray
    token: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray
    stability_offset: float


@dataclass(frozen=True)
class Proposals:
    """The proposals of one image, best first within a source.

    boxes: float32 `[N, 4]`, pixels of the upright image. source: uint8 `[N]`, index into `SOURCES`.
    prompt: int32 `[N]`, index into `points` (-1: none, or all points of a class together).
    token: uint8 `[N]`, mask token of SAM (0..3). predicted_iou, stability: float32 `[N]`.
    masks: COCO compressed RLE bytes, one per box, or None (a source without masks).
    points: float32 `[P, 5]`: x, y, value, class index (-1: none), source.
    decoded: all masks that they were chosen from, or None (not stored).
    """

    image_id: int
    height: int
    width: int
    boxes: np.ndarray
    source: np.ndarray
    prompt: np.ndarray
    token: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray
    masks: tuple[bytes, ...] | None
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    decoded: DecodedMasks | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def rles(self) -> list[dict] | None:
        """The masks as pycocotools takes them, `{"size": [H, W], "counts": bytes}`; None without.

        Raises `BadInput` for a code that is none of a mask of this size, which pycocotools would
        read beyond its end.
        """
        if self.masks is None:
            return None
        whole = are_codes(self.masks, self.height * self.width)
        if not whole.all():
            problem = f"mask {np.argmin(whole)} is none of {self.height} x {self.width} pixels"
            raise BadInput(f"the proposals of image {self.image_id}", problem, "export again")
        return [{"size": [self.height, self.width], "counts": one} for one in self.masks]

    def select(self, index: np.ndarray) -> "Proposals":
        """The proposals at `index` (integers or a boolean mask), in that order."""
        index = np.arange(len(self))[index]
        masks = None if self.masks is None else tuple(self.masks[i] for i in index)
        return replace(self, masks=masks, **{name: getattr(self, name)[index] for name in _COLUMNS})


def proposal_path(root: str | Path, split: str, image_id: int) -> Path:
    """The file of one image."""
    return Path(root) / split / f"{image_id % 100:02d}" / f"{image_id}.safetensors"


def write_proposals(
    root: str | Path, split: str, proposals: Proposals, metadata: dict[str, str]
) -> None:
    """Writes one image's proposals atomically; `metadata` says how they were made."""
    arrays = {
        "boxes": proposals.boxes.astype(np.float32).reshape(-1, 4),
        "source": proposals.source.astype(np.uint8),
        "prompt": proposals.prompt.astype(np.int32),
        "token": proposals.token.astype(np.uint8),
        "predicted_iou": proposals.predicted_iou.astype(np.float32),
        "stability": proposals.stability.astype(np.float32),
        "points": proposals.points.astype(np.float32).reshape(-1, 5),
        "size": np.asarray([proposals.height, proposals.width], np.int32),
    }
    if proposals.masks is not None:
        arrays["rle_bytes"] = np.frombuffer(b"".join(proposals.masks), np.uint8)
        lengths = [len(mask) for mask in proposals.masks]
        arrays["rle_offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    if proposals.decoded is not None:
        rows = vars(proposals.decoded)
        arrays |= {f"decoded_{name}": np.asarray(value) for name, value in rows.items()}
    write_stored(root, split, proposals.image_id, arrays=arrays, metadata=metadata)


def write_stored(
    root: str | Path,
    split: str,
    image_id: int,
    *,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes one image's file (proposals or clues), with its checksum, atomically; it is not
    synced by itself. `BadInput` in place of a file that is no store's."""
    own = {"version": VERSION, IMAGE: str(image_id), **metadata}
    path = proposal_path(root, split, image_id)
    check_replaced(path, is_sealed_arrays)
    write_bytes(path, seal_arrays(arrays, own), durable=False)


def read_proposals(root: str | Path, split: str, record: TagRecord | TruthRecord) -> Proposals:
    """Reads the proposals of an image; `BadInput` when the file is missing, truncated, foreign, or
    that of an image of another size."""
    image_id = record.image_id
    arrays, metadata = read_stored(root, split, image_id)
    path = proposal_path(root, split, image_id)
    found = parse_proposals(arrays, metadata, image_id, path=path)
    check_size(arrays["size"].tolist(), record, path)
    return found


def check_size(size: Sequence[int], record: TagRecord | TruthRecord, path: Path) -> None:
    """`BadInput` for a file of an image of another size (height, width): ids of two data sets are
    often alike."""
    if list(size) != [record.height, record.width]:
        theirs, ours = f"{size[1]} x {size[0]}", f"{record.width} x {record.height}"
        problem = f"is of an image of {theirs} pixels; image {record.image_id} is {ours}"
        raise BadInput(path, problem, "give the store of this data set, or export again")


def parse_proposals(
    arrays: dict[str, np.ndarray], metadata: dict[str, str], image_id: int, path: Path
) -> Proposals:
    """The proposals in the arrays of a file; `BadInput` with `path` when it is foreign, or when a
    box, score or place of a mask's code cannot be."""
    if metadata.get("version") != VERSION:
        raise BadInput(path, "is no proposal file of this version", "export again")
    if fault := column_fault(arrays):
        raise BadInput(path, fault, "export again")
    height, width = (int(side) for side in arrays["size"])
    masks = None
    if "rle_offsets" in arrays:
        data, offsets = arrays["rle_bytes"].tobytes(), arrays["rle_offsets"].tolist()
        masks = tuple(data[a:b] for a, b in pairwise(offsets))
    names = (*_COLUMNS, "points")
    return Proposals(
        image_id,
        height,
        width,
        masks=masks,
        decoded=_decoded_masks(arrays),
        **{name: arrays[name] for name in names},
    )


def _decoded_masks(arrays: dict[str, np.ndarray]) -> DecodedMasks | None:
    if "decoded_boxes" not in arrays:
        return None
    rows = {name: arrays[f"decoded_{name}"] for name in _COLUMNS}
    return DecodedMasks(stability_offset=float(arrays["decoded_stability_offset"]), **rows)


def read_stored(
    root: str | Path, split: str, image_id: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata) of one image's file (proposals or clues), or of its record in a pack.

    Raises `BadInput` when it is in neither, or damaged.
    """
    path = proposal_path(root, split, image_id)
    pack = None if path.exists() else open_pack(Path(root) / split)
    if pack is None:
        where: str | Path = path
        arrays, metadata = open_arrays(read_bytes(path), str(path))
    else:
        where = f"{pack.folder}, image {image_id}"
        arrays, metadata = pack.read(image_id)
    if metadata.get(IMAGE) != str(image_id):
        problem = f"is the file of image {metadata.get(IMAGE)}, not {image_id}"
        raise BadInput(where, problem, "export again")
    return arrays, metadata


def read_clues(
    root: str | Path,
    split: str,
    record: TagRecord | TruthRecord,
    *,
    names: Iterable[str],
    classes: int,
) -> dict[str, np.ndarray]:
    """These arrays of one image's file of clues (`bridge.proposals.export.export_split` says which
    there are); with maps comes `class_ids`. classes: how many the data set has.

    Raises `BadInput` when the file is missing or damaged, holds what no clue network says, or is
    that of an image of another size (files made before this was written say none).
    """
    arrays, _ = read_stored(root, split, record.image_id)
    path = proposal_path(root, split, record.image_id)
    if fault := clue_fault(arrays, names, classes):
        raise BadInput(path, fault, "export again")
    if "size" in arrays:
        check_size(arrays["size"].tolist(), record, path)
    return arrays


def is_stored(root: str | Path, split: str, image_id: int) -> bool:
    """Whether the store has this image, in either layout."""
    if proposal_path(root, split, image_id).exists():
        return True
    pack = open_pack(Path(root) / split)
    return pack is not None and image_id in pack.images


def manifest_path(root: str | Path, split: str) -> Path:
    """The file that says that a split is complete, and what it holds."""
    return Path(root) / split / "manifest.json"


def reopen_split(root: str | Path, split: str) -> None:
    """A split that is to be written is no longer complete: its manifest goes. `BadInput` when the
    file of that name is no store's."""
    path = manifest_path(root, split)
    check_replaced(path, is_sealed_json)
    path.unlink(missing_ok=True)


def write_manifest(root: str | Path, split: str, image_ids: Iterable[int], metadata: dict) -> None:
    """Marks a split as complete. Call it when every image of the split has its file."""
    path = manifest_path(root, split)
    make_folder(path.parent)
    sync_disk(path.parent)  # the images' files, which are not synced one by one
    write_sealed_json(path, {**metadata, "images": sorted(image_ids)})


def read_manifest(root: str | Path, split: str) -> dict | None:
    """The manifest, or None while the split is not complete."""
    path = manifest_path(root, split)
    if not path.exists():
        return None
    found = read_sealed_json(path)
    if not ids_fit(found.get("images")):
        raise BadFile(path, "has no list of images", "export again")
    return found

"""Data sets on disk, whatever their layout: VOCdevkit, COCO, or `images/` + `tags.csv`.

The layout is recognised by its files, in this order: `ImageSets/Main` (VOC), `annotations/*.json`
(COCO), `tags.csv`. A path that starts with `tfds:` is exported to a VOCdevkit first.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from weaksam_jax.data.formats import coco, tags_csv, tfds, voc
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TagSplit, TruthSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import fingerprint


@dataclass(frozen=True)
class _Reader:
    """A layout found on disk: its folder and the three functions that read it."""

    root: Path
    tags: Callable[[Path, str], TagSplit]
    truth: Callable[[Path, str], TruthSplit | None]
    split_names: Callable[[Path], dict[str, str]]


@dataclass(frozen=True)
class SplitCount:
    """What `verify_images` found. negatives: images without a tag."""

    images: int
    negatives: int
    tags: int


def open_tags(path: str | Path, split: str, difficult: bool = False) -> TagSplit:
    """Images and image-level tags of a split; no box or mask is looked at.

    difficult: objects that VOC calls difficult give tags, too (other layouts know no such). In a
    VOC folder a split for testing needs no annotations and has no tags then.
    Raises `BadInput` when the path is no data set, and for every fault that the readers name.
    """
    reader = _reader(path)
    if difficult and reader.tags is voc.voc_tags:
        return voc.voc_tags(reader.root, split, difficult=True)
    return reader.tags(reader.root, split)


def open_truth(path: str | Path, split: str) -> TruthSplit | None:
    """Boxes and masks of a split, for evaluation only; None when the data set has tags alone
    (in a VOC folder also when no image of the split is annotated)."""
    reader = _reader(path)
    return reader.truth(reader.root, split)


def split_names(path: str | Path) -> dict[str, str]:
    """Names of the training and test split, e.g. `{"train": "trainval", "test": "test"}`."""
    reader = _reader(path)
    return reader.split_names(reader.root)


def is_training(split: str) -> bool:
    """Whether a split is for training (its tags are known then): its name starts with train.

    So do those of all layouts that `split_names` gives.
    """
    return split.startswith("train")


def verify_images(split: TagSplit, progress: bool = True) -> SplitCount:
    """Decodes every image once, on two threads; `BadInput` at the first that is broken.

    An image whose decoded size is not the record's (changed on disk since) is broken, too.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        work = pool.map(_verify, split.records)
        bar = tqdm(
            work,
            total=len(split.records),
            desc=f"check {split.split}",
            unit="images",
            disable=not progress,
        )
        try:
            tags = [len(record.tags) for record in bar]
        except BaseException:  # a broken image or Ctrl-C: do not wait for the rest
            pool.shutdown(cancel_futures=True)
            raise
    return SplitCount(len(tags), sum(count == 0 for count in tags), sum(tags))


def dataset_fingerprint(path: str | Path, split: str) -> str:
    """A cheap hash of what training reads: classes, each image's id, name, bytes and tags.

    Boxes and masks have no part in it, so it stays when they are removed.
    """
    tags = open_tags(path, split)
    rows = [
        [record.image_id, record.file_name, record.path.stat().st_size, record.tags]
        for record in tags.records
    ]
    return fingerprint([tags.split, tags.classes, tags.category_ids, rows])


def _verify(record: TagRecord) -> TagRecord:
    height, width = load_image(record.path).shape[:2]
    if (width, height) != (record.width, record.height):
        problem = f"is {width} x {height}, not {record.width} x {record.height} as when opened"
        raise BadInput(record.path, problem, "run the command again")
    return record


def _reader(path: str | Path) -> _Reader:
    if str(path).startswith(tfds.PREFIX):
        path = tfds.tfds_folder(str(path))
    path = Path(path)
    if not path.is_dir():
        raise BadInput(path, "is no folder", "give the folder of a data set")
    if (root := voc.find_voc(path)) is not None:
        return _Reader(root, voc.voc_tags, voc.voc_truth, voc.voc_split_names)
    if (root := coco.find_coco(path)) is not None:
        return _Reader(root, coco.coco_tags, coco.coco_truth, coco.coco_split_names)
    if (root := tags_csv.find_tags_csv(path)) is not None:
        return _Reader(root, tags_csv.csv_tags, tags_csv.csv_truth, tags_csv.csv_split_names)
    raise BadInput(
        path,
        "is no data set",
        "give a VOCdevkit (JPEGImages, ImageSets/Main), a COCO folder (images, annotations/*.json) "
        "or a folder with images and tags.csv",
    )

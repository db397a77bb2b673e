"""Data sets on disk, whatever their format: VOCdevkit, COCO, or `images/` + `tags.csv`.

The format is recognised by its files, in the order of `FORMATS`: `ImageSets/Main` (VOC),
`annotations/*.json` (COCO), `tags.csv`. A path that starts with `tfds:` is exported to a VOCdevkit
and read there. A new format is a file in `weaksam_jax.data.formats` and a row in `FORMATS`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from weaksam_jax.data.content import content_hashes
from weaksam_jax.data.formats import coco, tags_csv, tfds, voc
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TagSplit, TruthSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import fingerprint
from weaksam_jax.progress import progress_bar
from weaksam_jax.ranges import is_utf8


@dataclass(frozen=True)
class Format:
    """How a data set lies on disk: functions of its folder and, but the first and last, a split."""

    find: Callable[[str | Path], Path | None]
    """The folder to read, of the path that a user gave; None when it is not of this format."""
    tags: Callable[[Path, str], TagSplit]
    """Images and tags, without a look at boxes."""
    truth: Callable[[Path, str], TruthSplit | None]
    """Boxes and masks; None where the data set has none."""
    split_names: Callable[[Path], dict[str, str]]
    """`{"train": name, "test": name}`."""
    tags_with_difficult: Callable[[Path, str], TagSplit] | None = None
    """As `tags`, objects called difficult give tags too; None: the format knows no such."""
    truth_files: Callable[[Path, str], list[Path]] | None = None
    """The files that `truth` reads boxes and masks from; None: it reads none."""


_VOC = {
    "tags": voc.voc_tags,
    "tags_with_difficult": partial(voc.voc_tags, difficult=True),
    "truth": voc.voc_truth,
    "truth_files": voc.voc_truth_files,
    "split_names": voc.voc_split_names,
}
# By name, in the order in which they are tried.
FORMATS = {
    "tfds": Format(tfds.find_tfds, **_VOC),
    "voc": Format(voc.find_voc, **_VOC),
    "coco": Format(
        coco.find_coco,
        coco.coco_tags,
        coco.coco_truth,
        split_names=coco.coco_split_names,
        truth_files=coco.coco_truth_files,
    ),
    "tags_csv": Format(
        tags_csv.find_tags_csv,
        tags_csv.csv_tags,
        tags_csv.csv_truth,
        split_names=tags_csv.csv_split_names,
    ),
}


@dataclass(frozen=True)
class SplitCount:
    """What `verify_images` found. negatives: images without a tag."""

    images: int
    negatives: int
    tags: int


def find_dataset(path: str | Path) -> tuple[Path, Format]:
    """The folder that a path means and its format; `BadInput` when it is no data set, or has a name
    that no file of ours can hold (a data set is named by its folder)."""
    for form in FORMATS.values():
        if (root := form.find(path)) is not None:
            if not is_utf8(root.name):
                raise BadInput(root, "has a name that is not UTF-8", "rename the folder")
            return root, form
    if not Path(path).is_dir():
        raise BadInput(path, "is no folder", "give the folder of a data set")
    raise BadInput(
        path,
        "is no data set",
        "give a VOCdevkit (JPEGImages, ImageSets/Main), a COCO folder (images, annotations/*.json) "
        "or a folder with images and tags.csv",
    )


def open_tags(path: str | Path, split: str, difficult: bool = False) -> TagSplit:
    """Images and image-level tags of a split; no box or mask is looked at.

    difficult: objects that VOC calls difficult give tags, too (other formats know no such). In a
    VOC folder a split for testing needs no annotations and has no tags then.
    Raises `BadInput` when the path is no data set, and for every fault that the readers name.
    """
    root, form = find_dataset(path)
    read = form.tags_with_difficult if difficult else None
    return (read or form.tags)(root, split)


def open_truth(path: str | Path, split: str) -> TruthSplit | None:
    """Boxes and masks of a split, for evaluation only; None when the data set has tags alone
    (in a VOC folder also when no image of the split is annotated)."""
    root, form = find_dataset(path)
    return form.truth(root, split)


def split_names(path: str | Path) -> dict[str, str]:
    """Names of the training and test split, e.g. `{"train": "trainval", "test": "test"}`."""
    root, form = find_dataset(path)
    return form.split_names(root)


def is_training(split: str) -> bool:
    """Whether a split is for training (its tags are known then): its name starts with train.

    So do those of all formats that `split_names` gives.
    """
    return split.startswith("train")


def verify_images(split: TagSplit, progress: bool = True) -> SplitCount:
    """Decodes every image once, on two threads; `BadInput` at the first that is broken.

    An image whose decoded size is not the record's (changed on disk since) is broken, too.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        work, total = pool.map(_verify, split.records), len(split.records)
        bar = progress_bar(work, f"check {split.split}", total=total, disable=not progress)
        try:
            tags = [len(record.tags) for record in bar]
        except BaseException:  # a broken image or Ctrl-C: do not wait for the rest
            pool.shutdown(cancel_futures=True)
            raise
    return SplitCount(len(tags), sum(count == 0 for count in tags), sum(tags))


def dataset_fingerprint(path: str | Path, split: str, cache: Path | None = None) -> str:
    """A hash of what training reads: classes, each image's id, name and content, and tags.

    Boxes and masks have no part in it, so it stays when they are removed. cache: see
    `weaksam_jax.data.content.content_hashes`; without it every image is read.
    """
    tags = open_tags(path, split)
    hashes = content_hashes([record.path for record in tags.records], cache, f"images of {split}")
    rows = [
        [record.image_id, record.file_name, content, record.tags, record.uncertain]
        for record, content in zip(tags.records, hashes, strict=True)
    ]
    return fingerprint([tags.split, tags.classes, tags.category_ids, rows])


def truth_fingerprint(path: str | Path, split: str, cache: Path | None = None) -> str:
    """A hash of the files that hold a split's boxes and masks, whether they can be read or not.

    For measuring alone: what training reads has `dataset_fingerprint`. cache: as there.
    """
    root, form = find_dataset(path)
    files = [] if form.truth_files is None else form.truth_files(root, split)
    names = [file.relative_to(root).as_posix() for file in files]
    hashes = content_hashes(files, cache, f"annotations of {split}")
    return fingerprint(sorted(zip(names, hashes, strict=True)))


def _verify(record: TagRecord) -> TagRecord:
    height, width = load_image(record.path).shape[:2]
    if (width, height) != (record.width, record.height):
        problem = f"is {width} x {height}, not {record.width} x {record.height} as when opened"
        raise BadInput(record.path, problem, "run the command again")
    return record

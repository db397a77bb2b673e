"""Reader of `images/` + `tags.csv`: a user's own photographs with tags and no box anywhere.

`tags.csv` has the columns file, tags, split: a path below `images/`, tags separated by `;` (none:
a negative image), train or test. An optional `classes.txt` names the classes and their order;
without it they are the sorted set of tags.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from weaksam_jax.data.formats.checks import first_duplicate, read_classes
from weaksam_jax.data.images import image_size
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput

_COLUMNS = ("file", "tags", "split")
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class _Row:
    line: int
    file: str
    tags: tuple[str, ...]
    split: str


def find_tags_csv(path: str | Path) -> Path | None:
    """The folder at `path` if it has a `tags.csv`, else None."""
    path = Path(path).resolve()
    return path if (path / "tags.csv").exists() else None


def csv_split_names(root: Path) -> dict[str, str]:
    """Always train and test."""
    return {"train": "train", "test": "test"}


def csv_tags(root: Path, split: str) -> TagSplit:
    """Images and tags of a split.

    Image ids count from 1 in the order of all file names of the table, sorted, so they do not
    change when rows move.
    """
    rows = _read(root / "tags.csv")
    classes = read_classes(root / "classes.txt")
    if classes is None:
        classes = tuple(sorted({tag for row in rows for tag in row.tags}))
    if not classes:
        raise BadInput(root / "tags.csv", "has no tag at all", "tag the images (column tags)")
    index = {name: i for i, name in enumerate(classes)}
    ids = {name: i for i, name in enumerate(sorted(row.file for row in rows), 1)}
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        problem = f"split {split} is empty"
        raise BadInput(root / "tags.csv", problem, f"write {split} into the column split")
    records = []
    for row in tqdm(chosen, desc=f"read {split}", unit="images", delay=3):
        tags = {_tag_index(root / "tags.csv", row, tag, index=index) for tag in row.tags}
        path = root / "images" / row.file
        width, height = image_size(path)
        record = TagRecord(
            ids[row.file], row.file, path, width=width, height=height, tags=tuple(sorted(tags))
        )
        records.append(record)
    return TagSplit(
        "tags",
        split,
        classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        records=tuple(records),
    )


def csv_truth(root: Path, split: str) -> None:
    """None: such a data set has no boxes."""
    return None


def _tag_index(path: Path, row: _Row, tag: str, index: dict[str, int]) -> int:
    if tag not in index:
        problem = f"line {row.line}: tag {tag!r} is not in the class list"
        raise BadInput(path, problem, f"correct it or add it to {path.parent / 'classes.txt'}")
    return index[tag]


def _read(path: Path) -> list[_Row]:
    """All rows of the table, checked: columns, splits, every file once."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                hint = "the first line must be file,tags,split"
                raise BadInput(path, f"has no column {' and '.join(missing)}", hint)
            rows = [_row(path, reader.line_num, fields) for fields in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(path, f"cannot be read ({error})", "save it as UTF-8 CSV") from error
    if not rows:
        raise BadInput(path, "lists no image", "add one line per image: file,tags,split")
    twice = first_duplicate(row.file for row in rows)
    if twice is not None:
        raise BadInput(path, f"{twice} is listed twice", "list every image once")
    return rows


def _row(path: Path, line: int, fields: dict) -> _Row:
    file, tags, split = ((fields.get(name) or "").strip() for name in _COLUMNS)
    if not file:
        raise BadInput(path, f"line {line} names no file", "name it or remove the line")
    if split not in _SPLITS:
        problem = f"line {line}: split {split!r} is neither train nor test"
        raise BadInput(path, problem, "write train or test")
    if None in fields:
        problem = f"line {line} has more than {len(fields) - 1} fields"
        raise BadInput(path, problem, "separate tags by ; and quote names that hold a comma")
    found = tuple(tag.strip() for tag in tags.split(";") if tag.strip())
    return _Row(line, file, found, split=split)

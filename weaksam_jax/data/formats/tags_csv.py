"""Reader of `images/` + `tags.csv`: a user's own photographs with tags and no box anywhere.

`tags.csv` has the columns file, tags, split: a path below `images/`, tags separated by `;` (none:
a negative image), train or test. Columns may stand in any order, with others beside them, and be
separated by commas, semicolons or tabs, as spreadsheets save them. An optional `classes.txt` names
the classes and their order; without it they are the sorted set of tags.
"""

import csv
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weaksam_jax.data.formats.checks import check_inside, clean, clean_name, read_classes
from weaksam_jax.data.formats.file_index import FileIndex, first_twins
from weaksam_jax.data.images import image_size
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_text
from weaksam_jax.progress import progress_bar

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
    records, paths = [], _paths(root, rows)
    for row in progress_bar(chosen, f"read {split}", delay=3):
        tags = {_tag_index(root / "tags.csv", row, tag, index=index) for tag in row.tags}
        path = paths[row.file]
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


def _paths(root: Path, rows: list[_Row]) -> dict[str, Path]:
    """The file of each row's name, of both splits: a photo of both would be tested on what it
    taught."""
    images = FileIndex(root / "images")
    paths = [_image_path(images, row.file) for row in rows]
    if (twins := first_twins(paths)) is not None:
        one, other = (rows[index] for index in twins)
        problem = f"line {other.line}: {other.file} is the file of line {one.line}, {one.file}"
        raise BadInput(root / "tags.csv", problem, "list every image once")
    return {row.file: path for row, path in zip(rows, paths, strict=True)}


def _image_path(images: FileIndex, name: str) -> Path:
    """The file of a name, of which backslashes may be a Windows table's."""
    found = images.file(name) or images.file(name.replace("\\", "/"))
    return found or images.root / name  # named by the error of whoever opens it


def _read(path: Path) -> list[_Row]:
    """All rows of the table, checked: columns, splits, every file once."""
    table = _table(path)
    try:
        _, header = next(table, (1, []))
        columns = _columns(path, header)
        rows = [_row(path, line, fields, columns=columns) for line, fields in table]
    except csv.Error as error:
        raise BadInput(path, f"cannot be read ({error})", "save it as UTF-8 CSV") from error
    if not rows:
        raise BadInput(path, "lists no image", "add one line per image: file,tags,split")
    lines: dict[str, int] = {}
    for row in rows:
        first = lines.setdefault(_key(row.file), row.line)
        if first != row.line:
            problem = f"{row.file} is listed twice (lines {first} and {row.line})"
            raise BadInput(path, problem, "list every image once")
    return rows


def _key(name: str) -> str:
    """Equal for names of one file."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _table(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, fields) of every row that is not blank."""
    lines = read_text(path).split("\n")
    start = next((i for i, line in enumerate(lines) if clean(line)), 0)
    separator = _separator(lines[start])
    if clean(lines[start]).lower().startswith("sep="):  # a spreadsheet's first line
        start += 1
    reader = csv.reader(
        (f"{line}\n" for line in lines[start:]), delimiter=separator, skipinitialspace=True
    )
    for row in reader:
        fields = [clean(field) for field in row]
        if any("\n" in field for field in fields):
            problem = f'line {start + reader.line_num} ends in a quotation that began before (")'
            raise BadInput(path, problem, 'close it, or write " within a quotation twice')
        if any(fields):
            yield start + reader.line_num, fields


def _separator(header: str) -> str:
    """What separates the columns: comma, semicolon or tab."""
    text = clean(header).lower()
    if text.startswith("sep=") and len(text) == 5:
        return text[-1]
    return max(",;\t", key=header.count)


def _columns(path: Path, header: list[str]) -> list[int]:
    """Where file, tags and split stand; the last number: how many columns there are."""
    names = [name.lower() for name in header]
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        hint = "the first line must be file,tags,split"
        raise BadInput(path, f"has no column {' and '.join(missing)}", hint)
    twice = [name for name in _COLUMNS if names.count(name) > 1]
    if twice:
        raise BadInput(path, f"has column {twice[0]} twice", "name every column once")
    return [*(names.index(name) for name in _COLUMNS), len(names)]


def _row(path: Path, line: int, fields: list[str], columns: list[int]) -> _Row:
    *places, width = columns
    file, tags, split = (fields[one] if one < len(fields) else "" for one in places)
    if not file:
        raise BadInput(path, f"line {line} names no file", "name it or remove the line")
    if any(fields[width:]):
        problem = f"line {line} has more than {width} fields"
        raise BadInput(path, problem, "separate tags by ; and quote names that hold a comma")
    if split.lower() not in _SPLITS:
        problem = f"line {line}: split {split!r} is neither train nor test"
        raise BadInput(path, problem, "write train or test")
    file = check_inside(file, path, f"line {line}")
    found = (clean_name(tag, path, f"line {line}: a tag") for tag in tags.split(";") if clean(tag))
    return _Row(line, file, tuple(found), split=split.lower())

"""The image lists of a VOC folder (`ImageSets/Main/*.txt`): names, files and ids.

An id depends on the image's name alone, and the classes on per-class lists and annotations, so that
a stray or hidden text file beside the lists changes nothing.
"""

import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from weaksam_jax.data.formats.checks import check_inside, clean_name, first_duplicate, read_lines
from weaksam_jax.data.formats.file_index import IMAGE_SUFFIXES, FileIndex
from weaksam_jax.data.formats.voc_xml import VocObject, read_annotation
from weaksam_jax.errors import BadFile, BadInput

_ROW = re.compile(r"(.*\S)\s+([+-]?[01])")
# Ids of names that are no numbers: 52 bits of their hash, which every JSON reader keeps.
_FIRST_HASHED = 1 << 52


@dataclass(frozen=True)
class VocImage:
    """An image of a list. name: as listed, without suffix; annotation: whether there or not."""

    name: str
    image_id: int
    path: Path
    annotation: Path


@dataclass(frozen=True)
class VocFiles:
    """A VOC folder and what its folders hold."""

    root: Path
    images: FileIndex
    annotations: FileIndex
    masks: FileIndex
    _objects: dict[Path, list[VocObject]] = field(default_factory=dict)

    def objects(self, annotation: Path) -> list[VocObject]:
        """What `read_annotation` gives; each file is read once."""
        if annotation not in self._objects:
            self._objects[annotation] = read_annotation(annotation)
        return self._objects[annotation]

    @property
    def lists(self) -> dict[str, Path]:
        """Split name -> list; hidden files are none."""
        paths = sorted((self.root / "ImageSets" / "Main").glob("*.txt"))
        return {path.stem: path for path in paths if not path.name.startswith(".")}

    def image(self, name: str, where: Path) -> VocImage:
        """The image of a name in a list (where), with or without a suffix."""
        name = check_inside(name, where, "the list")
        path, stem = self._image_path(name)
        number = voc_image_id(stem)
        number = hashed_id(stem) if number is None else number
        return VocImage(stem, number, path=path, annotation=self.annotation(stem))

    def annotation(self, stem: str) -> Path:
        """The XML of an image, whether there or not."""
        found = self.annotations.by_stem(stem, (".xml",))
        return found or self.annotations.root / f"{stem}.xml"

    def has(self, name: str) -> bool:
        """Whether there is an image or annotation of a name in a list."""
        stems = _stems(name)
        images = (self.images.holds(stem, IMAGE_SUFFIXES) for stem in [name, *stems])
        return bool(stems) and (
            any(images) or any(self.annotations.holds(stem, (".xml",)) for stem in stems)
        )

    def _image_path(self, name: str) -> tuple[Path, str]:
        """The image's file, and its name without suffix where the list has it with one."""
        suffix = Path(name).suffix
        with_suffix = suffix.lower() in IMAGE_SUFFIXES
        exact = self.images.file(name) if with_suffix else None
        if exact is not None:
            return exact, name.removesuffix(suffix)
        found = self.images.by_stem(name, IMAGE_SUFFIXES)
        if found is not None:
            return found, name
        # Named by the error of whoever opens it.
        missing = self.images.root / (name if with_suffix else f"{name}.jpg")
        return missing, name.removesuffix(suffix) if with_suffix else name


def voc_files(root: Path) -> VocFiles:
    """A VOC folder; its folders are listed when they are first asked for."""
    images, annotations = FileIndex(root / "JPEGImages"), FileIndex(root / "Annotations")
    return VocFiles(root, images, annotations, masks=FileIndex(root / "SegmentationObject"))


def voc_image_id(name: str) -> int | None:
    """`000005` -> 5, `2008_000008` -> 2008000008 (the contract's rule); None for other names."""
    digits = name.replace("_", "")
    return int(digits) if re.fullmatch("[0-9]{1,18}", digits) else None


def hashed_id(name: str) -> int:
    """The id of a name that is no number: of the name alone, 2**52 to 2**53, in any Unicode form.

    So an image keeps its id whatever other images or lists there are.
    """
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode(errors="replace")).digest()
    return _FIRST_HASHED | int.from_bytes(digest[:8], "big") >> 12


def read_list(files: VocFiles, split: str) -> list[VocImage]:
    """The images of a split; `BadInput` for a list that is missing or names one twice."""
    path = files.root / "ImageSets" / "Main" / f"{check_inside(split, files.root, 'a split')}.txt"
    try:
        lines = read_lines(path)
    except BadFile as error:
        known = ", ".join(sorted(name for name in files.lists if "_" not in name))
        hint = error.hint if path.is_file() else f"splits here: {known}"
        raise BadInput(path, f"image list {error.problem}", hint) from error
    if not lines:
        raise BadInput(path, f"split {split} is empty", "list at least one image name in it")
    images = [files.image(name, path) for name in _per_class_names(files, lines) or lines]
    twice = first_duplicate(image.name for image in images)
    if twice is not None:
        raise BadInput(path, f"image {twice} is listed twice", "list every image once")
    twice = first_duplicate(image.image_id for image in images)
    if twice is not None:
        both = " and ".join(image.name for image in images if image.image_id == twice)
        raise BadInput(path, f"{both} have the same image id {twice}", "rename one of them")
    return images


def annotations_of_all_lists(files: VocFiles) -> list[Path]:
    """The annotations, sorted, of what any list names that has one; other text is passed over."""
    found = set()
    for path in files.lists.values():
        try:
            lines = read_lines(path)
        except BadFile:
            continue  # no list of images: another program's file
        for name in _per_class_names(files, lines) or lines:
            found.update(one for one in map(files.annotation, _stems(name)) if os.path.exists(one))
    return sorted(found)


def classes_with_lists(files: VocFiles) -> set[str]:
    """Classes that have per-class lists: `<class>_<split>.txt` of rows `name flag`."""
    lists, names = files.lists, set()
    for stem, path in lists.items():
        label, _, split = stem.rpartition("_")
        if label and split in lists and _is_per_class(files, path):
            names.add(clean_name(label, path, "a per-class list"))
    return names


def _is_per_class(files: VocFiles, path: Path) -> bool:
    try:
        return _per_class_names(files, read_lines(path, most=50)) is not None
    except BadFile:
        return False


def _per_class_names(files: VocFiles, lines: list[str]) -> list[str] | None:
    """What stands before the flags of a per-class list (rows `name -1`); None for other lists.

    Names may hold blanks, so that `dog 1` is a name where there is such an image.
    """
    rows = [_ROW.fullmatch(line) for line in lines]
    names = [row[1] for row in rows if row]
    if len(names) < len(lines) or any(map(files.has, lines[:5])):
        return None
    return names if any(map(files.has, names[:5])) else None


def _stems(name: str) -> list[str]:
    """What an annotation of a listed name may be called."""
    suffix = Path(name).suffix
    parts = {".."} & set(re.split(r"[\\/]", name))
    if parts or name.startswith("/"):
        return []
    return [name, name.removesuffix(suffix)] if suffix.lower() in IMAGE_SUFFIXES else [name]

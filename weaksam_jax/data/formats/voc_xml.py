"""One annotation of a VOC folder: its objects as they are written, whoever wrote the file.

Encodings: that of the byte-order mark, else the one that the file declares, else UTF-8. Namespaces
and capital letters in tags have no meaning here. Entities are refused (they can grow without
bound), and nothing outside of the file is ever read.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from weaksam_jax.data.formats.checks import clean, clean_name
from weaksam_jax.data.json_rows import as_number
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import read_bytes
from weaksam_jax.text import decode_text, marked_encoding

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Encodings that hold all of another (by Python's names), tried first, as browsers do: files that
# declare the smaller one often hold characters of the greater.
_GREATER = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "euc_jp": "euc_jis_2004",
    "iso8859-1": "cp1252",
    "ascii": "utf-8",
}
# Names in use that Python does not know (most are WHATWG's), and codecs of Python's that are no
# encodings of files.
_OTHER_NAMES = {
    "windows-31j": "cp932",
    "dos-874": "cp874",
    "cn-big5": "big5",
    "cseucpkdfmtjapanese": "euc_jp",
    "koi8-ru": "koi8-u",
    "mac-ukrainian": "mac-cyrillic",
    "csisolatin9": "iso8859-15",
    "sun_eu_greek": "iso8859-7",
    **dict.fromkeys(("csgb2312", "gb_2312", "gb_2312-80"), "gb2312"),
    **dict.fromkeys(("cseuckr", "csksc56011987", "iso-ir-149", "ksc_5601"), "euc_kr"),
    "ks_c_5601-1989": "euc_kr",
    **dict.fromkeys(("koi", "koi8"), "koi8-r"),
    **dict.fromkeys(("mac", "csmacintosh"), "mac-roman"),
    **dict.fromkeys(("iso-8859-6-e", "iso-8859-6-i"), "iso8859-6"),
    **dict.fromkeys(("iso-8859-8-e", "iso-8859-8-i", "logical"), "iso8859-8"),
    **dict.fromkeys(("utf-8n", "utf8n", "utf8mb4", "unicode-1-1-utf-8", "unicode11utf8"), "utf-8"),
    **dict.fromkeys(("ucs-2", "iso-10646-ucs-2", "csunicode", "unicode", "unicodefeff"), "utf-16"),
    "unicodefffe": "utf-16",
    **dict.fromkeys(("ucs-4", "iso-10646-ucs-4"), "utf-32"),
    **dict.fromkeys(("unicode_escape", "raw_unicode_escape", "idna", "punycode"), ""),
}
_UNMARKED = {  # what "<" is in them; the longer first
    b"<\0\0\0": "utf-32-le",
    b"\0\0\0<": "utf-32-be",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
# What only an object has: elsewhere it tells of an object that would be passed over.
_OF_OBJECTS = {"bndbox", "robndbox", "difficult"}
_ENDLESS = re.compile(r"[+-]?(nan|inf(inity)?|[0-9.]+e\+?[0-9]{3,})", re.IGNORECASE)
_WORDS = {
    **dict.fromkeys(("", "0", "false", "no", "n", "f"), False),
    **dict.fromkeys(("1", "true", "yes", "y", "t"), True),
}


@dataclass(frozen=True)
class VocObject:
    """An object of an annotation.

    number: its place in the file, from 1. corners: xmin, ymin, xmax, ymax as they are written
    ("?": missing); None when it has no `<bndbox>`.
    """

    number: int
    name: str
    difficult: bool
    corners: tuple[str, str, str, str] | None

    def __str__(self) -> str:
        return f"object {self.number} ({self.name})"


def read_annotation(path: Path) -> list[VocObject]:
    """The objects of a VOC annotation, in the order of the file; parts of objects are none.

    Raises `BadInput` with `path` when it is no annotation, or what an object says is not one thing.
    """
    root = _parse(path)
    return [_object(one, number, path) for number, one in enumerate(_objects(root, path), 1)]


def box_of(item: VocObject, path: Path, width: int, height: int) -> list[float]:
    """`[xmin-1, ymin-1, xmax, ymax]` of VOC's 1-based inclusive corners, checked."""
    texts = item.corners or ("?",) * 4
    shown = f"box {' '.join(texts)} of {item}"
    hint = f"correct it (1-based, inclusive; the image is {width} x {height})"
    try:
        xmin, ymin, xmax, ymax = map(as_number, texts)
    except ValueError as error:
        endless = any(map(_ENDLESS.fullmatch, texts))
        problem = "is not finite" if endless else "is incomplete or of no plain numbers"
        raise BadInput(path, f"{shown} {problem}", hint) from error
    if not (xmax >= xmin and ymax >= ymin):
        raise BadInput(path, f"{shown} is inverted", hint)
    if not (xmin >= 1 and ymin >= 1 and xmax <= width and ymax <= height):
        raise BadInput(path, f"{shown} lies outside the image", hint)
    return [xmin - 1, ymin - 1, xmax, ymax]


def _object(element: ElementTree.Element, number: int, path: Path) -> VocObject:
    what = f"object {number}"
    text = _text(element, "name", path, what=what)
    if not clean(text):
        raise BadInput(path, f"{what} is an <object> without <name>", "name its class")
    name = clean_name(re.sub(r"\s*[\n\t]\s*", " ", clean(text)), path, what)
    what = f"{what} ({name})"
    difficult = _yes(_text(element, "difficult", path, what=what), path, what)
    box = _only(element, "bndbox", path, what=what)
    if box is None:
        return VocObject(number, name, difficult, corners=None)
    corners = tuple(clean(_text(box, corner, path, what=what)) or "?" for corner in _CORNERS)
    return VocObject(number, name, difficult, corners=corners)


def _yes(text: str, path: Path, what: str) -> bool:
    """What a field says that is 0 or 1; words of other tools are understood."""
    word = clean(text).lower()
    if word in _WORDS:
        return _WORDS[word]
    if re.fullmatch(r"[+-]?0*(0|1)(\.0*)?", word) and not word.startswith("-1"):
        return float(word) == 1
    raise BadInput(path, f"{what}: difficult is {text.strip()!r}", "write 0 or 1")


def _text(element: ElementTree.Element, tag: str, path: Path, what: str) -> str:
    """The text of a field, "" when it is missing or empty."""
    found = _only(element, tag, path, what=what)
    if found is None or not len(found):
        return "" if found is None else found.text or ""
    return "".join(found.itertext())


def _only(
    element: ElementTree.Element, tag: str, path: Path, what: str
) -> ElementTree.Element | None:
    """The one child with a tag, or None."""
    found = element.findall(tag)
    if len(found) > 1:
        hint = "write one <object> for each" if tag == "bndbox" else "keep the right one"
        raise BadInput(path, f"{what} has {len(found)} <{tag}>", hint)
    return found[0] if found else None


def _objects(root: ElementTree.Element, path: Path) -> Iterator[ElementTree.Element]:
    """Every `<object>` that is not within a part, in the order of the file.

    `BadInput` for one within another, and for what only objects have outside of all.
    """
    waiting = [(root, "")]
    while waiting:
        element, within = waiting.pop()
        if element.tag in _OF_OBJECTS and within != "object":
            problem = f"has <{element.tag}> in <{within}>, which is no <object>"
            raise BadInput(path, problem, "write each object as <object>")
        if element.tag == "object" and within == "object":
            hint = "close each with </object> before the next"
            raise BadInput(path, "has an <object> within another <object>", hint)
        if element.tag == "object":
            yield element
        if element.tag != "part":
            inside = "object" if "object" in (element.tag, within) else element.tag
            waiting += [(child, inside) for child in reversed(element)]


def _parse(path: Path) -> ElementTree.Element:
    text = _decode(_read(path), path)
    if "<!ENTITY" in text:
        raise BadInput(path, "defines entities", "write the characters themselves")
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    try:
        root = ElementTree.fromstring(text.strip())
    except (ElementTree.ParseError, ValueError) as error:
        raise BadInput(path, f"is no XML ({error})", "correct or replace the file") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2].lower()
    if root.tag != "annotation":
        problem = f"is no VOC annotation (it begins with <{root.tag}>)"
        raise BadInput(path, problem, "give a file that begins with <annotation>")
    return root


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except BadFile as error:
        hint = "restore it, or take the image out of the list (an image without objects has an "
        problem = f"annotation {error.problem}"
        raise BadInput(path, problem, hint + "annotation without <object>)") from error


def _decode(data: bytes, path: Path) -> str:
    declared = re.match(rb"\s*<\?xml[^>]*\sencoding\s*=\s*[\"']([^\"'>]*)[\"']", data[:1000])
    for start, encoding in _UNMARKED.items():
        if data.startswith(start):
            said = f"{encoding.upper()}, as its first bytes are"
            return _decode_as(data, (encoding,), said, path=path)
    if declared is None or marked_encoding(data):
        return decode_text(data, path)
    name = declared[1].decode("latin-1").strip()
    encoding = _codec(name, path)
    if encoding.startswith(("utf-8", "utf-16", "utf-32")):
        return decode_text(data, path)  # what can be read as ASCII here is no UTF-16
    said = f"{name}, the encoding that it declares"
    return _decode_as(data, (_GREATER.get(encoding, encoding), encoding), said, path=path)


def _codec(name: str, path: Path) -> str:
    """Python's name of an encoding that a file declares."""
    try:
        codec = codecs.lookup(_known_name(name.lower()))
        b"a".decode(codec.name, errors="replace")
        return codec.name
    except Exception as error:  # unknown, no name at all, or no encoding of text
        problem = f"declares the encoding {name!r}, which is not known"
        raise BadInput(path, problem, "correct the name, or save it as UTF-8") from error


def _known_name(name: str) -> str:
    """The name by which Python may know an encoding: `x-euc-jp` is euc-jp, `windows-949` cp949."""
    if name not in _OTHER_NAMES:
        name = re.sub(r"^(x-)+", "", name)
        name = re.sub(r"^iso_?8859([0-9]{1,2})$", r"iso8859-\1", name)
    name = _OTHER_NAMES.get(name, name)
    return re.sub(r"^(windows-|ms)([0-9]+)$", r"cp\2", name)


def _decode_as(data: bytes, encodings: tuple[str, ...], said: str, path: Path) -> str:
    """The text in the first encoding that fits; said: what the file says of its own."""
    where = ""
    for one in encodings:
        try:
            text = data.decode(one)
        except UnicodeDecodeError as error:
            where = where or f" (line {data[: error.start].count(10) + 1})"
            continue
        if "\0" not in text:
            return text
    problem = f"is not {said}{where}"
    raise BadInput(path, problem, "correct the name, or save it as UTF-8")

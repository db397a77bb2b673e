"""Text files: encodings, line ends, and JSON that is none."""

import codecs
import json
import os
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from weaksam_jax.errors import BadFile
from weaksam_jax.files import check_regular, read_json, read_text
from weaksam_jax.text import file_name_of

TEXT = "Hündin,猫,😀\nzwei\n"


def saved(folder: Path, data: bytes) -> Path:
    path = folder / "some.txt"
    path.write_bytes(data)
    return path


def refused(path: Path, *words: str, read=read_text) -> str:
    """The one line of the refusal, which names the file and holds the words."""
    return refusal(read, path, *words, error=BadFile)


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        codecs.BOM_UTF16_LE + TEXT.replace("\n", "\r\n").encode("utf-16-le"),
    ],
)
def test_every_encoding_that_a_file_declares_is_read(tmp_path, data):
    assert read_text(saved(tmp_path, data)) == TEXT


def test_an_empty_file_is_an_empty_text(tmp_path):
    assert read_text(saved(tmp_path, b"")) == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("eins\nzw\xf6lf\n".encode("latin-1"), ("line 2, byte 3", "0xf6", "UTF-8")),
        ("eins\r\nzw\xf6lf\r\n".encode("latin-1"), ("line 2, byte 3",)),
        ("狗\n".encode("gb2312"), ("line 1, byte 1", "save it as UTF-8", "cannot be told")),
        (b"one\ntw\0o\n", ("line 2, character 3", "NUL")),
        ("ab".encode("utf-16-le"), ("NUL", "save it as UTF-8")),
        (codecs.BOM_UTF16_LE + b"a\0b", ("UTF-16-LE", "byte 5")),
        (codecs.BOM_UTF16_LE + b"a\0\0\0", ("NUL",)),
        (b"\xed\xa0\x80", ("line 1, byte 1",)),
    ],
)
def test_other_bytes_are_refused_with_their_place(tmp_path, data, words):
    refused(saved(tmp_path, data), *words)


def test_a_huge_file_of_zeros_is_refused_by_its_beginning(tmp_path):
    path = saved(tmp_path, b"")
    os.truncate(path, 1 << 40)
    refused(path, "NUL")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "pipe", "a pipe", read=check_regular)
    refused(tmp_path / "pipe", "a pipe")
    refused(tmp_path, "a folder")
    refused(tmp_path / "none", "does not exist")
    refused(tmp_path / ("x" * 300), "cannot be read")
    refused(tmp_path / "loop", "cannot be read")
    with pytest.raises(BadFile, match="cannot be read"):
        check_regular(tmp_path / "a\0b")


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path / "link").symlink_to(saved(tmp_path, b"x"))
    assert read_text(tmp_path / "link") == "x"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_every_encoding(tmp_path, encoding):
    value = {"name": "Hündin 😀", "x": [1, 2.5, None, True]}
    text = json.dumps(value, ensure_ascii=False, indent=1).replace("\n", "\r\n")
    assert read_json(saved(tmp_path, text.encode(encoding))) == value


def test_a_surrogate_pair_is_a_character(tmp_path):
    assert read_json(saved(tmp_path, rb'["\ud83d\ude00"]')) == ["😀"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("is empty",)),
        ('{"a": 1', ("is not JSON", "line 1 column 8")),
        ("[1]\n[2]", ("line 2 column 1",)),
        ('{"annotations": [{"bbox": [1, 2]}, {"bbox": [1, NaN]}]}', ("annotations[1].bbox[1]",)),
        ('[{"score": -Infinity}]', ("[0].score", "-Infinity")),
        ('{"images": [], "images": [1]}', ("'images'", "twice")),
        ("[\n1" + "0" * 5000 + "]", ("line 2, character 1", "too many digits")),
        ("[" * 200_000, ("nested too deeply",)),
        ('{"a":' * 200_000, ("nested too deeply",)),
        (r'{"name": "\ud800"}', ("surrogate",)),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, text, words):
    refused(saved(tmp_path, text.encode()), *words, read=read_json)


@given(st.text(), st.text())
def test_file_names_of_texts_are_safe_and_their_own(one, other):
    name = file_name_of(one)
    assert (name == file_name_of(other)) == (one == other)
    assert 0 < len(name.encode()) <= 150 and not name.startswith(".")
    assert not set(name) & set('/\\:*?"<>|\0\n')
    if one and "%~" not in name:
        assert unquote(name) == one


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tvmonitor", "tvmonitor"), ("Hündin 猫", "Hündin 猫"), ("car/truck", "car%2Ftruck"),
        ("..", "%2E%2E"), ("x/../../y", "x%2F..%2F..%2Fy"), ("100%", "100%25"), ("", "%"),
    ],
)  # fmt: skip
def test_file_names_of_some_texts(text, name):
    assert file_name_of(text) == name


def test_long_texts_with_one_beginning_have_names_of_their_own(tmp_path):
    names = {file_name_of("猫" * 300 + str(i)) for i in range(5)}
    assert len(names) == 5
    for name in names:
        (tmp_path / f"comp4_det_trainval_{name}.txt").touch()

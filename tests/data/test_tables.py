"""tags.csv as spreadsheets and people save it; class lists and names of every reader."""

import unicodedata

import pytest
from folders import write_csv, write_image
from hypothesis import given
from hypothesis import strategies as st

from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.formats.checks import check_inside, clean_name, read_classes
from weaksam_jax.errors import BadInput

FILES = ("a.jpg", "b c.jpg", "sub/ü.png")
PLAIN = "file,tags,split\na.jpg,dog;cat,train\nb c.jpg,,train\nsub/ü.png,Hündin,test\n"


@pytest.fixture
def root(tmp_path):
    write_csv(tmp_path, [f"{name},x,train" for name in FILES])
    return tmp_path


def rows(root, text: str | bytes, split="train"):
    """[(file, names of its tags)] of a table."""
    (root / "tags.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = open_tags(root, split)
    return [(one.file_name, [found.classes[tag] for tag in one.tags]) for one in found.records]


EXPECTED = [("a.jpg", ["cat", "dog"]), ("b c.jpg", [])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_encoding_and_line_end(root, encoding, end):
    data = PLAIN.replace("\n", end).encode(encoding)
    assert rows(root, data) == EXPECTED
    assert rows(root, data, "test") == [("sub/ü.png", ["Hündin"])]


@pytest.mark.parametrize(
    "text",
    [
        "file;tags;split\na.jpg;\"dog;cat\";train\nb c.jpg;;train\n",
        "file\ttags\tsplit\na.jpg\tdog;cat\ttrain\nb c.jpg\t\ttrain\n",
        "sep=;\nfile;tags;split\na.jpg;\"dog;cat\";train\nb c.jpg;;train\n",
        "\n\n file , Tags,SPLIT \n\n a.jpg , dog ; cat ,Train\n\nb c.jpg, ,TRAIN\n,,\n \n",
        'file,tags,split\n"a.jpg" , "dog;cat" , "train"\n b c.jpg,"",train\n',
        "split,note,file,tags\ntrain,x y,a.jpg,dog;cat\ntrain,,b c.jpg,\n",
        "file,tags,split,,\na.jpg,dog;cat,train,,\nb c.jpg,,train,\n",
        "file,tags,split\na.jpg,;dog;;cat;dog;,train\nb c.jpg,;,train,,,\n",
        "file,tags,split\n./a.jpg,dog;cat,train\nb c.jpg,,train",
    ],
)  # fmt: skip
def test_one_table_in_many_forms(root, text):
    assert rows(root, text) == EXPECTED


def test_quotation_marks_and_separators_in_names(root):
    for name in ("a, b.jpg", 'the "big" one.jpg', "x;y.jpg"):
        write_image(root / "images" / name)
    text = 'file,tags,split\n"a, b.jpg","owl, snowy",train\n"the ""big"" one.jpg",cat,train\n'
    expected = [("a, b.jpg", ["owl, snowy"]), ('the "big" one.jpg', ["cat"]), ("x;y.jpg", ["cat"])]
    assert rows(root, text + "x;y.jpg,cat,train\n") == expected


def test_names_of_files_in_other_forms(root):
    """Unicode in the form of Macs, the other case of a suffix, and backslashes."""
    mac = unicodedata.normalize("NFD", "sub/ü.png")
    for written in (mac, "sub/ü.PNG", "sub\\ü.png"):
        ((name, _),) = rows(root, f"file,tags,split\n{written},cat,train\n")
        assert name == written
        assert open_tags(root, "train").records[0].path == root / "images" / "sub" / "ü.png"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no column file and tags and split"),
        ("\n", "has no column"),
        ("a.jpg,dog,train\n", "has no column"),
        ("file,split\na.jpg,train\n", "has no column tags"),
        ("file,tags,split,File\na.jpg,dog,train,a.jpg\n", "has column file twice"),
        ("file,tags,split\n", "lists no image"),
        ("file,tags,split\na.jpg,dog\n", "line 2: split '' is neither"),
        ("file,tags,split\n\n\na.jpg,dog,vali\n", "line 4: split 'vali' is neither"),
        ("file,tags,split\na.jpg,dog,cat,train\n", "line 2 has more than 3 fields"),
        ("file;tags;split\na.jpg;dog;cat;train\n", "line 2 has more than 3 fields"),
        ("file,tags,split\na.jpg,dog,train\na.jpg,dog,train\n", "a.jpg is listed twice .*2 and 3"),
        ("file,tags,split\na.jpg,dog,train\n./a.jpg,dog,test\n", "a.jpg is listed twice"),
        ('file,tags,split\n"a.jpg,dog,train\nb c.jpg,cat,test\n', "quotation"),
        ("file,tags,split\n\"" + "x" * 200_000 + "\",cat,train\n", "cannot be read .*field"),
        ("file,tags,split\na.jpg,do\x07g,train\n", r"line 2: a tag has the name .*U\+0007"),
        ("file,tags,split\n../a.jpg,dog,train\n", "line 2 names .*not lie in the data set"),
        ("file,tags,split\n/etc/passwd,dog,train\n", "line 2 names .*not lie in the data set"),
        ("file,tags,split\nC:\\a.jpg,dog,train\n", "line 2 names .*not lie in the data set"),
        ("file,tags,split\nx\\..\\..\\a.jpg,dog,train\n", "line 2 names .*not lie in"),
        ("file,tags,split\n.,dog,train\n", "line 2 names .*not lie in"),
        ("file,tags,split\nnone.jpg,dog,train\n", r"none\.jpg: image does not exist"),
        ("file,tags,split\nsub,dog,train\n", "sub: image is a folder"),
        (b"file,tags,split\na.jpg,H\xfcndin,train\n", "line 2, byte 8 .* save it as UTF-8"),
        (b"file,tags,split\na.jpg,d\0g,train\n", "line 2, character 8 is a NUL"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(root, text, words):
    with pytest.raises(BadInput, match=words) as caught:
        rows(root, text)
    assert "\n" not in str(caught.value) and "delete" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_lists_in_every_encoding(tmp_path, encoding):
    path = tmp_path / "classes.txt"
    path.write_bytes("  Hündin\r\n\r\n猫 \r\n../a/b\r\n".encode(encoding))
    assert read_classes(path) == ("Hündin", "猫", "../a/b")


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\n \n", "names no class"), (b"cat\n cat\n", "names class cat twice"),
     ("ü\nu\u0308\n".encode(), "twice"), (b"c\x1b[31mat\n", "U\\+001B"), (b"c\0at", "NUL"),
     (b"\xfc\n", "save it as UTF-8")],
)  # fmt: skip
def test_class_lists_that_are_refused(tmp_path, data, words):
    (tmp_path / "classes.txt").write_bytes(data)
    with pytest.raises(BadInput, match=words):
        read_classes(tmp_path / "classes.txt")


@given(st.text())
def test_a_name_is_clean_or_refused(text):
    try:
        name = clean_name(text, "x", "it")
    except BadInput:
        return
    assert name and name == clean_name(name, "x", "it") and name.encode()
    assert "\n" not in name and "\0" not in name and name.strip() == name
    assert unicodedata.is_normalized("NFC", name)


@given(st.lists(st.sampled_from(["a", "b.jpg", "..", ".", "", "c:", " ", "...", "a\0"])))
def test_a_path_stays_inside_or_is_refused(parts):
    try:
        name = check_inside("/".join(parts), "x", "it")
    except BadInput:
        assert ".." in parts or "/".join(parts)[:1] in ("", "/") or "\0" in "".join(parts) or not [
            one for one in parts if one not in ("", ".")
        ] or parts[0] == "c:"  # fmt: skip
        return
    assert ".." not in name.split("/") and not name.startswith("/") and "\0" not in name


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("d\u200bog", "dog"), ("d\u200dog", "dog"), ("dog\u200c", "dog"), ("\u200ddog", "dog"),
        ("d\u00adog", "dog"), ("\u200edog\u200f", "dog"), ("do\u2060g", "dog"),
        ("dog\ufe0f", "dog"),
        ("\ufeffdo\ufeffg", "dog"), ("hot\u00a0dog", "hot dog"), ("hot\u202f dog", "hot  dog"),
        ("hot dog\u00a0\u200e", "hot dog"), ("e\u034f\u0301", "é"), ("dog\U000e0067", "dog"),
        ("\u212b\u200d", "Å"), ("1\ufe0f\u20e3", "1\u20e3"),
    ],
)  # fmt: skip
def test_names_that_look_alike_are_one(tmp_path, written, seen):
    assert clean_name(written, "x", "it") == seen
    root = write_csv(tmp_path / "mine", [f"a.jpg,{written},train", f"b.jpg,{seen},train"])
    tags = open_tags(root, "train")
    assert tags.classes == (seen,) and [one.tags for one in tags.records] == [(0,), (0,)]


@pytest.mark.parametrize(
    "name",
    ["می\u200cخواهم", "क्\u200dष", "👩\u200d🚒", "❤\ufe0f", "🏴\U000e0067\U000e0062\U000e007f",
     "ネコ\u3000科", "dog's", "a  b"],
)  # fmt: skip
def test_what_can_be_seen_stays(name):
    assert clean_name(name, "x", "it") == name


@pytest.mark.parametrize("name", ["\u200b", "\u200d", "\u00ad\u200e", "\u00a0", "\ufeff\u2060"])
def test_a_name_of_nothing_that_can_be_seen_is_none(name):
    with pytest.raises(BadInput, match="it has no name"):
        clean_name(name, "x", "it")

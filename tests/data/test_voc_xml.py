"""Annotations as other programs and people write them: read, or refused in one line."""

import pytest
from folders import voc_object, write_voc
from refusals import refusal

from weaksam_jax.data.datasets import open_tags, open_truth
from weaksam_jax.data.formats.voc_xml import read_annotation
from weaksam_jax.errors import BadInput

BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"


def written(folder, text: str | bytes):
    path = folder / "1.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def annotation(*objects: str) -> str:
    return f"<annotation>{''.join(objects)}</annotation>"


def one_object(name="dog", more="", box=BOX) -> str:
    return f"<object><name>{name}</name>{more}{box}</object>"


def names(path) -> list[str]:
    return [one.name for one in read_annotation(path)]


def refused(path, *words: str) -> None:
    refusal(read_annotation, path, *words)


@pytest.mark.parametrize(
    ("declared", "codec", "name"),
    [
        ("gb2312", "gb2312", "狗"),
        ("GB2312", "gbk", "喆"),  # not in GB 2312: such files are often GBK
        ("gbk", "gbk", "狗"),
        ("GB18030", "gb18030", "狗"),
        ("Big5", "big5", "貓"),
        ("shift_jis", "shift_jis", "猫"),
        ("Shift-JIS", "cp932", "①"),
        ("windows-31j", "cp932", "髙"),
        ("EUC-JP", "euc_jp", "猫"),
        ("euc-kr", "euc_kr", "고양이"),
        ("ks_c_5601-1987", "cp949", "고양이"),
        ("iso-8859-1", "latin-1", "Hündin"),
        ("ISO-8859-1", "cp1252", "Zoë’s €"),
        ("ISO-8859-2", "iso8859-2", "źrebię"),
        ("windows-1251", "cp1251", "кошка"),
        ("KOI8-R", "koi8-r", "кошка"),
        ("windows-1256", "cp1256", "قطة"),
        ("us-ascii", "utf-8", "Hündin"),
        ("utf-16", "utf-8", "Hündin"),  # .NET writes this
        ("UTF-16", "utf-16", "Hündin"),
        ("utf-16", "utf-16-le", "Hündin"),  # without a mark
        ("utf-16", "utf-16-be", "Hündin"),
        ("anything", "utf-8-sig", "Hündin"),  # the mark decides
        ("utf-8", "utf-8", "Hündin 😀"),
        ("x-euc-jp", "euc_jp", "犬"),
        ("x-sjis", "shift_jis", "犬"),
        ("x-windows-949", "cp949", "고양이"),
        ("ks_c_5601-1989", "euc_kr", "고양이"),
        ("x-x-big5", "big5", "貓"),
        ("windows-936", "gbk", "狗"),
        ("x-cp1251", "cp1251", "кошка"),
        ("dos-874", "cp874", "หมา"),
        ("iso88592", "iso8859-2", "źrebię"),
        ("x-mac-roman", "mac_roman", "chién"),
        ("x-mac-ukrainian", "mac_cyrillic", "кошка"),
        ("utf8mb4", "utf-8", "Hündin"),
        ("utf-32", "utf-32-le", "Hündin"),  # without a mark
        ("utf-32", "utf-32-be", "Hündin"),
        ("ucs-4", "utf-32", "Hündin"),
    ],
)
def test_declared_encodings_are_read(tmp_path, declared, codec, name):
    head = f"<?xml version='1.0' encoding='{declared}'?>\r\n"
    path = written(tmp_path, (head + annotation(one_object(name))).encode(codec))
    assert names(path) == [name]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_without_declaration_are_read(tmp_path, codec):
    path = written(tmp_path, ("\n" + annotation(one_object("Hündin"))).encode(codec))
    assert names(path) == ["Hündin"]


@pytest.mark.parametrize(
    ("declared", "data", "words"),
    [
        ("nonsense-7", b"dog", ("nonsense-7", "not known", "UTF-8")),
        ("hex", b"dog", ("hex", "not known")),
        ("undefined", b"dog", ("not known",)),
        ("unicode_escape", rb"\x64og", ("not known",)),
        ("rot13", b"dog", ("not known",)),
        ("../x\x00", b"dog", ("not known",)),
        ("euc-kr", b"\xff\xff", ("is not euc-kr", "line 2", "UTF-8")),
        ("utf-8", "狗".encode("gbk"), ("line 2", "UTF-8")),
        ("gbk", b"a\x00b", ("is not gbk",)),
        ("x-unicode_escape", rb"\x64og", ("not known",)),
        ("windows-9999", b"dog", ("windows-9999", "not known")),
    ],
)
def test_wrong_and_unknown_encodings_are_refused(tmp_path, declared, data, words):
    head = f'<?xml version="1.0" encoding="{declared}"?>\n<annotation><object><name>'.encode()
    refused(written(tmp_path, head + data + b"</name></object></annotation>"), *words)


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_unmarked_text_that_ends_amid_a_character(tmp_path, codec):
    path = written(tmp_path, (annotation(one_object()) + "\n").encode(codec)[:-1])
    refused(path, f"is not {codec.upper()}, as its first bytes are")


def test_undeclared_national_text_is_refused_with_its_place(tmp_path):
    text = annotation("\n", one_object("狗"))
    refused(written(tmp_path, text.encode("gbk")), "line 2, byte 15", "save it as UTF-8")


@pytest.mark.parametrize(
    "text",
    [
        annotation(one_object()).replace("<annotation>", '<annotation xmlns="urn:x">'),
        annotation(one_object()).replace("<", "<v:").replace("<v:/", "</v:")
        .replace("<v:annotation>", '<v:annotation xmlns:v="urn:x">'),
        annotation(one_object()).replace("object", "Object").replace("annotation", "ANNOTATION"),
        annotation("<objects>", one_object(), "</objects>"),
        annotation(one_object("\n    dog\t ")),
        annotation(one_object("\ufeffdog")),
        annotation(one_object("<!-- a -->dog")),
        annotation(one_object("<![CDATA[dog]]>")),
        annotation(one_object(more="<part><name>head</name><object><name>cat</name></object></part>")),
    ],
)  # fmt: skip
def test_one_dog_however_it_is_written(tmp_path, text):
    (found,) = read_annotation(written(tmp_path, text))
    assert (found.name, found.difficult, found.corners) == ("dog", False, ("2", "3", "9", "8"))


@pytest.mark.parametrize(
    ("word", "difficult"),
    [(one, True) for one in ("1", "True", "yes", "1.0", " 1 ", "Y", "+1")]
    + [(one, False) for one in ("0", "False", "no", "0.00", "", "\n0", "f")],
)
def test_difficult_as_other_programs_write_it(tmp_path, word, difficult):
    path = written(tmp_path, annotation(one_object(more=f"<difficult>{word}</difficult>")))
    assert [one.difficult for one in read_annotation(path)] == [difficult]


@pytest.mark.parametrize("word", ["2", "maybe", "-1", "nan", "0 1", "Unspecified", "10"])
def test_other_words_for_difficult_are_refused(tmp_path, word):
    text = annotation(one_object(), one_object("cat", f"<difficult>{word}</difficult>"))
    refused(written(tmp_path, text), "object 2 (cat)", "difficult", "0 or 1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (annotation(one_object(), one_object(more=BOX)), ("object 2 (dog)", "2 <bndbox>")),
        (annotation(one_object(more="<name>cat</name>")), ("object 1 has 2 <name>",)),
        (annotation(one_object(more="<difficult>0</difficult><difficult>1</difficult>")),
         ("object 1 (dog)", "2 <difficult>")),
        (annotation(one_object(box=BOX.replace("<xmin>", "<xmin>1</xmin><xmin>"))), ("2 <xmin>",)),
        (annotation(one_object("")), ("object 1", "without <name>")),
        (annotation(one_object("a\x7fb")), ("object 1", "U+007F")),
        ("", ("is no XML",)),
        ("<annotation>", ("is no XML",)),
        ("<html><body>404</body></html>", ("no VOC annotation", "<html>")),
        (annotation(one_object("&uuml;")), ("is no XML", "entity")),
        ("<v:annotation/>", ("is no XML",)),
        ("\0" * 10, ("NUL",)),
    ],
)  # fmt: skip
def test_what_is_not_one_thing_is_refused(tmp_path, text, words):
    refused(written(tmp_path, text), *words)


def test_entities_are_refused_before_they_grow(tmp_path):
    bomb = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "x"}">' for i in range(20))
    text = f"<!DOCTYPE annotation [{bomb}]>{annotation(one_object('&a19;'))}"
    refused(written(tmp_path, text), "entities")
    outside = f'<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///{tmp_path}/secret">]>'
    (tmp_path / "secret").write_text("dog")
    refused(written(tmp_path, outside + annotation(one_object("&x;"))), "entities")
    unread = f'<!DOCTYPE annotation SYSTEM "file:///{tmp_path}/secret">' + annotation(one_object())
    assert names(written(tmp_path, unread)) == ["dog"]


def test_deep_nesting_is_no_crash(tmp_path):
    deep = "<a>" * 100_000 + "</a>" * 100_000
    assert names(written(tmp_path, annotation(deep, one_object()))) == ["dog"]


@pytest.mark.parametrize(
    ("corner", "words"),
    [("nan", "not finite"), ("inf", "not finite"), ("-inf", "not finite"), ("1e999", "not finite"),
     ("5,5", "incomplete"), ("", "incomplete"), ("0", "outside"), ("21", "inverted"),
     ("1_0", "no plain numbers"), ("١", "no plain numbers"), ("１", "no plain numbers"),
     ("0x1", "no plain numbers"), ("1 0", "no plain numbers"), ("+-1", "no plain numbers")],
)  # fmt: skip
def test_boxes_that_are_none_are_refused(tmp_path, corner, words):
    root = write_voc(tmp_path, {"train": {"1": [voc_object("cat", (corner, 1, 5, 5))]}})
    with pytest.raises(BadInput, match=rf"1\.xml: box .* of object 1 \(cat\) .*{words}"):
        open_truth(root, "train")


@pytest.mark.parametrize("corner", ["1", " 1 ", "+1", "1.0", "1e0", "01", "1."])
def test_corners_that_are_plain_numbers(tmp_path, corner):
    root = write_voc(tmp_path, {"train": {"1": [voc_object("cat", (corner, 1, 5, 5))]}})
    assert open_truth(root, "train").records[0].boxes.tolist() == [[0, 0, 5, 5]]


NESTED = one_object(more=one_object("cat"))
PARTED = one_object(more="<part><name>head</name>" + BOX + "<difficult>0</difficult></part>")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (annotation(NESTED), ("<object> within another",)),
        (annotation(one_object(more=f"<group>{one_object()}</group>")), ("within another",)),
        (annotation("<objects>", one_object(), NESTED, "</objects>"), ("within another",)),
        (annotation(one_object().replace("object>", "item>")), ("<bndbox> in <item>", "<object>")),
        (annotation(one_object(), one_object().replace("object>", "obj>")), ("<bndbox> in <obj>",)),
        (annotation("<item><name>dog</name><difficult>0</difficult></item>"), ("<difficult>",)),
        (annotation("<name>dog</name>", BOX), ("<bndbox> in <annotation>",)),
        (annotation(BOX.replace("bndbox", "robndbox")), ("<robndbox> in <annotation>",)),
        (annotation(f"<objects>{BOX}</objects>"), ("<bndbox> in <objects>",)),
    ],
)
def test_objects_are_neither_passed_over_nor_hidden_in_others(tmp_path, text, words):
    refused(written(tmp_path, text), *words)


@pytest.mark.parametrize(
    "text",
    [
        annotation("<owner><name>Bob</name></owner>", one_object()),
        annotation("<part><name>head</name>" + BOX + "</part>", one_object()),
        annotation(PARTED),
        annotation(one_object(more=BOX.replace("bndbox", "robndbox"))),
    ],
)
def test_names_and_parts_that_are_no_objects(tmp_path, text):
    assert names(written(tmp_path, text)) == ["dog"]


def test_nothing_is_lost_on_the_way_to_tags_and_truth(tmp_path):
    """Objects in a namespace, and difficult ones of another spelling."""
    hard = one_object(more="<difficult>True</difficult>")
    root = write_voc(
        tmp_path, {"train": {"1": [hard], "2": [one_object()], "3": [voc_object("cat")]}}
    )
    path = root / "Annotations" / "2.xml"
    path.write_text(path.read_text().replace("<annotation>", '<annotation xmlns="urn:x">'))
    tags, truth = open_tags(root, "train").records, open_truth(root, "train").records
    assert [(one.tags, one.uncertain) for one in tags] == [
        ((), True),
        ((11,), False),
        ((7,), False),
    ]
    assert [one.difficult.tolist() for one in truth] == [[True], [False], [False]]
    assert [one.boxes.tolist() for one in truth[:2]] == [[[1, 2, 9, 8]]] * 2

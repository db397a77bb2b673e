"""Image lists, names and files of VOC folders as people have them."""

import shutil
import unicodedata

import pytest
from folders import voc_object, write_image, write_voc
from hypothesis import given
from hypothesis import strategies as st

from weaksam_jax.data.datasets import open_tags, open_truth, split_names, verify_images
from weaksam_jax.data.formats.voc_lists import hashed_id
from weaksam_jax.errors import BadInput

CAT, DOG = [voc_object("cat")], [voc_object("dog", (2, 2, 9, 9))]
STRAY = {
    "notes.txt": b"made by the students in 2019\n",
    "._trainval.txt": b"\0\5\x16\7\0\2\0\0Mac OS X\0\2 com.apple.quarantine q/0081\n",
    ".txt": b"x\n",
    "README.txt": "Für alle\n".encode("latin-1"),
    "hello_trainval.txt": b"hello world\nthese two\n",
    "owl_trainval.txt": b"nothing 1\n",
    "._owl_trainval.txt": b"000003 1\n",
    "long.txt": b"x" * 5000 + b"\n",
    "old.txt": b"../../etc/passwd\n/root\nb-7\n",
}


def files_of(root, split):
    return [(one.image_id, one.file_name) for one in open_tags(root, split).records]


def main(root, name="trainval"):
    return root / "ImageSets" / "Main" / f"{name}.txt"


def test_stray_and_hidden_text_changes_nothing(tmp_path):
    splits = {"trainval": {"000003": DOG, "000005": CAT}, "test": {"000011": CAT}}
    root = write_voc(tmp_path, splits)
    before = [open_tags(root, "trainval"), open_tags(root, "test"), split_names(root)]
    boxes = [one.boxes.tolist() for one in open_truth(root, "trainval").records]
    assert [one.image_id for one in before[0].records] == [3, 5]
    for name, data in STRAY.items():
        main(root).with_name(name).write_bytes(data)
        assert [open_tags(root, "trainval"), open_tags(root, "test"), split_names(root)] == before
    assert [one.boxes.tolist() for one in open_truth(root, "trainval").records] == boxes


def test_a_number_keeps_its_id_beside_other_names(tmp_path):
    root = write_voc(tmp_path, {"train": {"000003": DOG, "dog": CAT}, "val": {"2008_000008": DOG}})
    ids = dict((name, number) for number, name in files_of(root, "train"))
    assert ids == {"000003.jpg": 3, "dog.jpg": hashed_id("dog")}
    assert files_of(root, "val") == [(2008000008, "2008_000008.jpg")]


@given(st.text(), st.text())
def test_hashed_ids_are_of_the_name_alone_and_no_number_of_a_name(one, other):
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (hashed_id(one) == hashed_id(other)) == same
    assert 2**52 <= hashed_id(one) < 2**53 and float(hashed_id(one)) == hashed_id(one)


def test_names_with_blanks(tmp_path):
    images = {"my dog 1": DOG, "my dog 2": CAT, "my  cat": [], "Hündin 😀 1": DOG}
    root = write_voc(tmp_path, {"trainval": images, "test": {"7 1": CAT, "7 0": []}})
    assert [name for _, name in files_of(root, "trainval")] == [f"{one}.jpg" for one in images]
    assert [name for _, name in files_of(root, "test")] == ["7 1.jpg", "7 0.jpg"]
    assert len({one for split in ("trainval", "test") for one, _ in files_of(root, split)}) == 6
    assert [len(one.boxes) for one in open_truth(root, "trainval").records] == [1, 1, 0, 1]


@pytest.mark.parametrize("rows", ["000003 -1\n000005  1\n", "000003  0\r\n000005\t1\r\n"])
def test_per_class_lists_hold_names_and_flags(tmp_path, rows):
    root = write_voc(tmp_path, {"trainval": {"000003": DOG, "000005": CAT}, "test": {"1": CAT}})
    main(root, "dog_trainval").write_text(rows)
    main(root, "cat_trainval").write_text(rows)
    assert [number for number, _ in files_of(root, "dog_trainval")] == [3, 5]
    assert "dog" in open_tags(root, "trainval").classes
    main(root, "owl_trainval").write_text(rows)
    assert open_tags(root, "trainval").classes == ("cat", "dog", "owl")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_in_every_encoding(tmp_path, encoding, end):
    root = write_voc(tmp_path, {"train": {"Hündin": DOG, "1": CAT}})
    main(root, "train").write_bytes(f"  Hündin \t{end}{end}1{end}".encode(encoding))
    assert [name for _, name in files_of(root, "train")] == ["Hündin.jpg", "1.jpg"]


def test_a_list_that_is_no_text_is_refused(tmp_path):
    root = write_voc(tmp_path, {"train": {"1": DOG}})
    for data, words in ((b"1\nH\xfcndin\n", "line 2, byte 2"), (b"1\0\n", "NUL")):
        main(root, "train").write_bytes(data)
        with pytest.raises(BadInput, match=rf"train\.txt: image list .*{words}.*save it as UTF-8"):
            open_tags(root, "train")


@pytest.mark.parametrize(
    "suffix", [".bmp", ".Jpg", ".JPEG", ".jpeg", ".tif", ".TIFF", ".webp", ".PNG", ".gif"]
)
def test_suffixes_on_disk_and_in_lists(tmp_path, suffix):
    root = write_voc(tmp_path, {"train": {"a.b": DOG, "000002": CAT}})
    for name in ("a.b", "000002"):
        (root / "JPEGImages" / f"{name}.jpg").unlink()
        write_image(root / "JPEGImages" / f"{name}{suffix}")
    listed = files_of(root, "train")
    assert listed == [(hashed_id("a.b"), f"a.b{suffix}"), (2, f"000002{suffix}")]
    main(root, "train").write_text(f"a.b{suffix}\n000002{suffix.swapcase()}\n")
    assert files_of(root, "train") == listed
    assert [len(one.boxes) for one in open_truth(root, "train").records] == [1, 1]
    assert verify_images(open_tags(root, "train"), progress=False).images == 2


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_list", ["NFC", "NFD"])
def test_umlauts_in_both_forms(tmp_path, on_disk, in_list):
    name = "Hünd\u0331in 고양이"
    root = write_voc(tmp_path, {"train": {"x": DOG}})
    for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        old = root / folder / f"x{suffix}"
        old.rename(old.with_name(unicodedata.normalize(on_disk, name) + suffix))
    main(root, "train").write_text(unicodedata.normalize(in_list, name), encoding="utf-8")
    (record,) = open_tags(root, "train").records
    assert record.image_id == hashed_id(name) and record.tags and record.path.exists()
    assert len(open_truth(root, "train").records[0].boxes) == 1


def test_two_files_of_one_name_are_refused_until_the_list_names_one(tmp_path):
    root = write_voc(tmp_path, {"train": {"a": DOG}})
    write_image(root / "JPEGImages" / "a.png")
    with pytest.raises(BadInput, match=r"a\.jpg and a\.png.*write the name with its suffix"):
        open_tags(root, "train")
    main(root, "train").write_text("a.png\n")
    assert files_of(root, "train") == [(hashed_id("a"), "a.png")]
    main(root, "train").write_text("a.png\na.jpg\n")
    with pytest.raises(BadInput, match="image a is listed twice"):
        open_tags(root, "train")


def test_images_in_folders_keep_them_in_their_names(tmp_path):
    root = write_voc(tmp_path, {"train": {"1": DOG}})
    for folder in ("x", "y"):
        (root / "Annotations" / folder).mkdir()
        write_image(root / "JPEGImages" / folder / "1.jpg")
        shutil.copy(root / "Annotations" / "1.xml", root / "Annotations" / folder)
    main(root, "train").write_text("x/1\n./y/1\n")
    assert [name for _, name in files_of(root, "train")] == ["x/1.jpg", "y/1.jpg"]
    assert len({number for number, _ in files_of(root, "train")}) == 2


@pytest.mark.parametrize(
    "name", ["../a", "x/../../a", "/etc/passwd", "C:\\a", "..\\a", "\\\\server\\a", "x\\..\\..\\a"]
)
def test_lists_do_not_lead_out_of_the_data_set(tmp_path, name):
    root = write_voc(tmp_path / "in" / "VOC2007", {"train": {"a": DOG}})
    write_image(tmp_path / "in" / "a.jpg")
    main(root, "train").write_text(f"a\n{name}\n")
    with pytest.raises(BadInput, match=r"train\.txt: .* does not lie in the data set"):
        open_tags(root, "train")


def test_links_of_the_users_are_followed(tmp_path):
    root = write_voc(tmp_path / "VOC2007", {"train": {"1": DOG}})
    (root / "JPEGImages" / "1.jpg").rename(tmp_path / "elsewhere.jpg")
    (root / "JPEGImages" / "1.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert verify_images(open_tags(root, "train"), progress=False).images == 1


def test_split_names_do_not_lead_out_either(tmp_path):
    root = write_voc(tmp_path, {"train": {"a": DOG}})
    with pytest.raises(BadInput, match="a split names"):
        open_tags(root, "../../x")


def test_classes_do_not_depend_on_which_split_is_read(tmp_path):
    root = write_voc(tmp_path, {"mine": {"a": [voc_object("owl")]}, "yours": {"b": CAT}})
    for split in ("mine", "yours"):
        assert open_tags(root, split).classes == ("cat", "owl")

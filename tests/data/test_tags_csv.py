import pytest
from folders import write_csv, write_image
from PIL import Image

from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.data.formats.file_index import first_twins
from weaksam_jax.errors import BadInput

ROWS = ["b.jpg,dog; cat,train", "sub/a.png,,train", "c.jpg,owl,test"]


def test_tags(tmp_path):
    root = write_csv(tmp_path / "mine", ROWS)
    assert split_names(root) == {"train": "train", "test": "test"}
    tags = open_tags(root, "train")
    assert tags.classes == ("cat", "dog", "owl") and tags.category_ids == (1, 2, 3)
    assert [(r.image_id, r.file_name, r.tags) for r in tags.records] == [
        (1, "b.jpg", (0, 1)), (3, "sub/a.png", ()),
    ]  # fmt: skip
    assert open_truth(root, "train") is None and open_truth(root, "test") is None


def test_ids_and_tags_do_not_depend_on_the_order_of_rows(tmp_path):
    one = open_tags(write_csv(tmp_path / "a", ROWS), "train")
    two = open_tags(write_csv(tmp_path / "b", ROWS[::-1]), "train")
    key = {r.file_name: (r.image_id, r.tags) for r in one.records}
    assert key == {r.file_name: (r.image_id, r.tags) for r in two.records}


def test_class_list_orders_and_limits(tmp_path):
    root = write_csv(tmp_path / "mine", ROWS)
    (root / "classes.txt").write_text("owl\ndog\ncat\n")
    tags = open_tags(root, "train")
    assert tags.classes == ("owl", "dog", "cat") and tags.records[0].tags == (1, 2)
    (root / "classes.txt").write_text("owl\ncat\n")
    with pytest.raises(BadInput, match="line 2: tag 'dog' is not in the class list"):
        open_tags(root, "train")


def test_excel_utf8_and_quoted_names(tmp_path):
    root = write_csv(tmp_path / "mine", [])
    write_image(root / "images" / "a, b.jpg")
    text = '\ufefffile,tags,split,note\r\n"a, b.jpg",büffel,train,x\r\n'
    (root / "tags.csv").write_bytes(text.encode())
    tags = open_tags(root, "train")
    assert tags.classes == ("büffel",) and tags.records[0].file_name == "a, b.jpg"


def test_rotated_photograph_is_upright(tmp_path):
    root = write_csv(tmp_path / "mine", ROWS)
    exif = Image.Exif()
    exif[274] = 6
    write_image(root / "images" / "b.jpg", 20, 10, exif=exif)
    record = open_tags(root, "train").records[0]
    assert (record.width, record.height) == (10, 20)


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (["a.jpg,cat,train", "a.jpg,dog,test"], "a.jpg is listed twice"),
        (["a.jpg,cat,test"], "split train is empty"),
        (["a.jpg,cat,val"], "line 2: split 'val' is neither train nor test"),
        ([",cat,train"], "line 2 names no file"),
        (["a.jpg,,train"], "has no tag at all"),
        (["a.jpg,cat,train,dog"], "line 2 has more than 3 fields"),
        ([], "lists no image"),
    ],
)
def test_bad_tables(tmp_path, rows, word):
    root = write_csv(tmp_path / "mine", rows)
    with pytest.raises(BadInput, match=word) as caught:
        open_tags(root, "train")
    assert caught.value.path == str((root / "tags.csv").resolve())


def test_bad_columns_encoding_and_missing_image(tmp_path):
    root = write_csv(tmp_path / "mine", [], header="file|tags|split")
    with pytest.raises(BadInput, match="has no column file and tags and split"):
        open_tags(root, "train")
    (root / "tags.csv").write_bytes(b"file,tags,split\na.jpg,\xff\xfe,train\n")
    with pytest.raises(BadInput, match=r"line 2, byte 7 .* is not UTF-8; save it"):
        open_tags(root, "train")
    (root / "tags.csv").write_text("file,tags,split\nnone.jpg,cat,train\n")
    with pytest.raises(BadInput, match=r"none\.jpg: image does not exist"):
        open_tags(root, "train")


@pytest.mark.parametrize("splits", [("train", "train"), ("train", "test"), ("test", "train")])
@pytest.mark.parametrize("names", [("a.jpg", "a.JPG"), ("a.Jpg", "a.jpg"), ("s/a.jpg", "s/a.JPG")])
def test_two_spellings_of_one_photo_are_refused(tmp_path, names, splits):
    rows = [f"{name},dog,{split}" for name, split in zip(names, splits, strict=True)]
    root = write_csv(tmp_path / "mine", rows)
    for path in (root / "images").rglob("*.*"):
        path.unlink()
    write_image(root / "images" / names[0].lower())
    for split in set(splits):
        with pytest.raises(BadInput, match=r"tags.csv: line 3: \S+ is the file of line 2") as error:
            open_tags(root, split)
        assert error.value.hint == "list every image once"


def test_photos_that_differ_in_capitals_are_two(tmp_path):
    rows = ["a.jpg,dog,train", "A.jpg,cat,train", "b.jpg,dog,train", "b.PNG,cat,train"]
    records = open_tags(write_csv(tmp_path / "mine", rows), "train").records
    assert len({record.path for record in records}) == 4


def test_twins_are_found_by_what_is_on_the_disk(tmp_path):
    one, link, hard = tmp_path / "a.jpg", tmp_path / "A.jpg", tmp_path / "A.JPG"
    one.write_bytes(b"")
    link.symlink_to(one)
    hard.hardlink_to(one)  # what a disk that does not tell capitals apart shows
    assert first_twins([one, link]) is None
    assert first_twins([link, tmp_path / "b.jpg", one, hard]) == (2, 3)
    assert first_twins([one, tmp_path / "missing.jpg", tmp_path / "MISSING.jpg"]) is None
    assert first_twins([tmp_path / "x", one, tmp_path / "x"]) == (0, 2)

"""Which photos are meant, and how their pictures are called."""

import os

import pytest
from PIL import Image

from experiments.pipeline.photos import find_photos, passed_over
from weaksam_jax.errors import BadInput


@pytest.fixture
def album(tmp_path):
    """Photos in folders, and a file that is none."""
    root = tmp_path / "album"
    for name in ("beach.jpg", "a/park.JPG", "b/park.jpg", "b/deep/tree.png", "b/tree.webp"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(path)
    (root / "notes.txt").write_text("none")
    return root


def names(photos):
    return [(one.record.file_name, one.picture.as_posix()) for one in photos]


def test_a_picture_is_named_after_its_photo(album, tmp_path):
    found = find_photos([album / "beach.jpg", album / "b" / "tree.webp"], tmp_path / "out")
    assert names(found) == [("beach.jpg", "beach.png"), ("tree.webp", "tree.png")]
    first = found[0].record
    assert (first.image_id, first.width, first.height, first.tags) == (1, 8, 6, ())
    assert first.path == album / "beach.jpg"


def test_photos_of_one_name_are_told_apart_by_their_folders(album, tmp_path):
    found = find_photos([album], tmp_path / "out")
    assert names(found) == [
        ("a/park.JPG", "a/park.png"),
        ("b/deep/tree.png", "b/deep/tree.png"),
        ("b/park.jpg", "b/park.png"),
        ("b/tree.webp", "b/tree.png"),
        ("beach.jpg", "beach.png"),
    ]
    for name in ("twin.png", "TWIN.jpg"):
        Image.new("RGB", (8, 6)).save(album / "a" / name)
    found = find_photos([album / "a"], tmp_path / "out")
    assert {picture for _, picture in names(found)} == {"park.png", "twin.png.png", "TWIN.jpg.png"}


def test_folders_globs_and_files_together_name_a_photo_once(album, tmp_path):
    given = [f"{album}/b/*.jpg", album / "b", f"{album}/**/park*", album / "beach.jpg"]
    found = find_photos(given, tmp_path / "out")
    assert [one.record.path.name for one in found] == [
        *("park.jpg", "tree.png", "tree.webp", "park.JPG", "beach.jpg")
    ]
    assert [one.record.image_id for one in found] == [1, 2, 3, 4, 5]


def test_what_was_made_before_is_no_photo(album):
    out = album / "pictures"
    before = names(find_photos([album], out))
    out.mkdir()
    Image.new("RGB", (8, 6)).save(out / "beach.png")
    assert names(find_photos([album], out)) == before


def test_a_folder_name_with_brackets_is_no_glob(tmp_path):
    folder = tmp_path / "trip [2024]"
    folder.mkdir()
    Image.new("RGB", (8, 6)).save(folder / "x.png")
    assert names(find_photos([folder / "x.png"], tmp_path)) == [("x.png", "x.png")]


def test_every_suffix_of_an_image_is_a_photo_and_others_are_counted(album, tmp_path):
    for name, kind in {"x.jfif": "JPEG", "y.PPM": "PPM", "z.avif": "AVIF", "w.tga": "TGA"}.items():
        Image.new("RGB", (8, 6)).save(album / name, kind)
    for name in ("._beach.jpg", "x.heic", "y.HEIC", "none"):
        (album / name).write_text("none")
    found = names(find_photos([album], tmp_path / "out"))
    assert {"x.jfif", "y.PPM", "z.avif", "w.tga", "beach.jpg"} < {name for name, _ in found}
    assert passed_over([album, album / "beach.jpg"], tmp_path / "out") == {
        ".heic": 2,
        ".txt": 1,
        "": 1,
    }
    assert passed_over([album / "a"], tmp_path / "out") == {}


def test_no_two_pictures_have_one_name(tmp_path):
    for name in ("a.jpg", "a.png", "a.png.jpg"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    assert dict(names(find_photos([tmp_path], tmp_path / "out"))) == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "a.png.jpg": "a.png.jpg.png",
    }


def test_links_to_folders_are_followed_once(album, tmp_path):
    (album / "b" / "loop").symlink_to(album)
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "elsewhere" / "sun.jpg")
    (album / "link").symlink_to(tmp_path / "elsewhere")
    paths = [one.record.path.name for one in find_photos([album], tmp_path / "out")]
    assert sorted(paths) == sorted(
        ["beach.jpg", "park.JPG", "park.jpg", "sun.jpg", "tree.png", "tree.webp"]
    )


@pytest.mark.parametrize("kind", ["link", "pipe", "name"])
def test_what_cannot_be_read_is_not_skipped(album, tmp_path, kind):
    path = os.fsencode(album) + (b"/\xff.jpg" if kind == "name" else b"/gone.jpg")
    if kind == "link":
        os.symlink("nowhere", path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.link(album / "beach.jpg", path)
    said = {"link": "does not exist", "pipe": "is a pipe", "name": "is no UTF-8"}[kind]
    with pytest.raises(BadInput, match=said):
        find_photos([album], tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "names no photo"),
        (["notes.txt"], r"notes\.txt: image cannot be read"),
        (["gone.jpg"], r"gone\.jpg: does not exist"),
        (["*.gone"], r"\*\.gone: matches no file"),
        (["empty"], r"empty: holds no photo \(\.jpg"),
    ],
)
def test_what_is_no_photo_is_refused(album, tmp_path, given, message):
    (album / "empty").mkdir()
    with pytest.raises(BadInput, match=message):
        find_photos([album / one for one in given], tmp_path / "out")


def test_no_photo_is_overwritten(album):
    Image.new("RGB", (8, 6)).save(album / "shot.png")
    with pytest.raises(BadInput, match="is a photo itself; give another --out"):
        find_photos([album / "shot.png"], album)

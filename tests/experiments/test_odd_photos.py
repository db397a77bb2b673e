"""One image of each odd kind through the pipeline, `predict` and `detect`, in every layout."""

import contextlib
import html
import shutil
import unicodedata
from pathlib import Path

import pytest
from markupsafe import escape
from odd_set import odd_tfds, write_images, write_odd_coco, write_odd_csv, write_odd_voc
from PIL import Image, ImageOps
from pycocotools.coco import COCO
from tiny_pipeline import flags

from experiments import custom, detect, predict
from experiments.pipeline.report import report_files
from experiments.pipeline.run import open_run
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.formats import tfds
from weaksam_jax.files import read_json
from weaksam_jax.report import page

pytestmark = pytest.mark.slow
COUNT = 26


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data set with tags alone, its finished run); not to be changed."""
    root = tmp_path_factory.mktemp("odd")
    write_odd_csv(root / "data", test=True)
    assert entry_point(custom.main, flags(root / "data", root / "run")) == 0
    return root / "data", root / "run"


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    write_odd_voc(root)
    (root / "classes.txt").write_text("dog\n")
    return root


def upright(path):
    """(width, height) that a viewer shows, by Pillow."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).size


def assert_inside(rows, paths):
    """Every box and mask lies in its upright image. paths: by file name."""
    sizes = {name: upright(path) for name, path in paths.items()}
    assert rows
    for row in rows:
        (x, y, width, height), size = row["bbox"], sizes[row["file_name"]]
        assert x >= 0 and y >= 0 and width >= 0 and height >= 0
        assert x + width <= size[0] + 0.01 and y + height <= size[1] + 0.01, row
        if "segmentation" in row:
            assert row["segmentation"]["size"] == [size[1], size[0]]


def files_of(data, split):
    return {one.file_name: one.path for one in open_tags(data, split).records}


def test_every_stage_has_every_image(trained):
    data, run = trained
    metrics = read_json(run / "metrics.json")
    assert metrics["dataset"]["train_images"] == metrics["dataset"]["test_images"] == COUNT
    names = sorted(files_of(data, "train") | files_of(data, "test"))
    ids = {name: place for place, name in enumerate(names, 1)}
    for split in ("train", "test"):
        mine = {ids[name] for name in files_of(data, split)}
        stored = (run / "proposals" / split).glob("*/*.safetensors")
        assert {int(path.stem) for path in stored} == mine and len(mine) == COUNT
        found = read_json(run / "wsod" / f"detections_{split}.json")
        assert {row["image_id"] for row in found} == mine
        assert all(ids[row["file_name"]] == row["image_id"] for row in found)
        assert_inside(found, files_of(data, split))
    found = read_json(run / "retrain" / "detections_test.json")
    assert {row["file_name"] for row in found} == {*files_of(data, "test")}
    assert_inside(found, files_of(data, "test"))


@pytest.mark.parametrize("name", ["pgt/pgt.json", "pgt/top1.json", "masks/pseudo.json"])
def test_annotations_that_pycocotools_loads(trained, name):
    data, run = trained
    with contextlib.redirect_stdout(None):
        coco = COCO(str(run / name))
    paths = files_of(data, "train")
    assert {one["file_name"] for one in coco.imgs.values()} == {*paths}
    for one in coco.imgs.values():
        assert (one["width"], one["height"]) == upright(paths[one["file_name"]])
    rows = [
        {**one, "file_name": coco.imgs[one["image_id"]]["file_name"]} for one in coco.anns.values()
    ]
    assert_inside(rows, paths)
    if name == "pgt/top1.json":
        assert sorted(row["image_id"] for row in rows) == sorted(coco.imgs)
    if name == "masks/pseudo.json":
        for one in coco.anns.values():
            assert coco.annToMask(one).sum() == one["area"] > 0


def test_every_name_is_escaped_in_the_report(trained, tmp_path, monkeypatch):
    data, root = trained
    monkeypatch.setattr(page, "TRAIN_IMAGES", COUNT)
    monkeypatch.setattr(page, "TEST_IMAGES", COUNT)
    run = open_run(shutil.copytree(root, tmp_path / "run"))
    splits = {split: open_tags(data, split) for split in ("train", "test")}
    path = page.write_report(report_files(run), splits, {"train": None, "test": None})
    text = path.read_text(encoding="utf-8")
    for name in files_of(data, "train") | files_of(data, "test"):
        assert f"<h3>{escape(name)}</h3>" in text
        assert name == html.escape(name) or name not in text
    assert text.count("data:image/jpeg;base64,") >= 2 * COUNT


def test_predict_on_a_folder_of_all(trained, tmp_path, capsys):
    album, out = tmp_path / "album", tmp_path / "out"
    sizes = write_images(album / "a")
    sizes = {f"a/{name}": size for name, size in sizes.items()}
    for name in ("b/cmyk.jpg", "b/tall.webp", "b/one.jfif", "b/new\nline.jpg", "b/a%2Fb.png"):
        (album / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), (9, 99, 9)).save(album / name)
        sizes[name] = (30, 20)
    for name, size in {"slim.png": (1, 3000), "dot.png": (1, 1), "-rf.jpg": (30, 20)}.items():
        Image.new("RGB", size, (9, 99, 9)).save(album / "b" / name)
        sizes[f"b/{name}"] = size
    (album / "b" / "._dot.png").write_bytes(b"what a Mac puts there")
    (album / "b" / "x.heic").write_bytes(b"not for Pillow")
    argv = ["--run", str(trained[1]), "--out", str(out), "--threshold", "0", str(album)]
    assert entry_point(predict.main, argv) == 0
    said = capsys.readouterr()
    assert f"objects on {len(sizes)} photos" in said.out
    assert "no photos by their suffix: 1 .heic" in said.err
    rows = read_json(out / "predictions.json")
    assert {row["file_name"] for row in rows} == {*sizes}
    assert len({row["image_id"] for row in rows}) == len(sizes)
    assert all("segmentation" in row for row in rows)
    assert_inside(rows, {name: album / name for name in sizes})
    pictures = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    assert len(pictures) == len(sizes)
    for name, (width, height) in sizes.items():
        picture = Path(name).with_suffix(".png").as_posix()
        scale = min(max(round(480 / max(width, height)), 1), 3)
        assert Image.open(out / picture).size == (width * scale, height * scale), name


def test_detect_with_files_for_the_server(trained, voc, tmp_path, capsys):
    weights = trained[1] / "retrain" / "params.safetensors"
    argv = ["--weights", str(weights), "--data", str(voc), "--out", str(tmp_path / "found")]
    assert entry_point(detect.main, [*argv, "--voc-files", str(tmp_path / "comp4")]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "has a blank" in line and "rename the image" in line
    assert not (tmp_path / "found").exists() and not (tmp_path / "comp4").exists()
    assert entry_point(detect.main, argv) == 0
    rows, paths = read_json(tmp_path / "found" / "detections.json"), files_of(voc, "test")
    assert {row["file_name"] for row in rows} == {*paths} and len(paths) == COUNT
    assert_inside(rows, paths)
    assert 0 <= read_json(tmp_path / "found" / "metrics.json")["voc07"]["ap50"] <= 100


def test_comp4_files_of_names_without_blanks(trained, voc, tmp_path):
    few = shutil.copytree(voc, tmp_path / "few")
    lines = (few / "ImageSets" / "Main" / "test.txt").read_text("utf-8-sig").splitlines()
    lines = [line for line in lines if len(line.split()) == 1]
    (few / "ImageSets" / "Main" / "test.txt").write_text("\n".join(lines), "utf-8")
    weights, out = trained[1] / "retrain" / "params.safetensors", tmp_path / "found"
    argv = ["--weights", str(weights), "--data", str(few), "--out", str(out)]
    assert entry_point(detect.main, [*argv, "--voc-files", str(tmp_path / "comp4")]) == 0
    (path,) = [one for one in (tmp_path / "comp4").iterdir() if "dog" in one.name]
    rows = [line.split(" ") for line in path.read_text("utf-8").splitlines()]
    found = read_json(out / "detections.json")
    assert len(rows) == len(found) and {unicodedata.normalize("NFC", row[0]) for row in rows} == {
        *(unicodedata.normalize("NFC", line) for line in lines)
    }
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)


def run_stages(data, out, stages):
    given = ("--stages", stages, "--proposals", "selective_search")
    assert entry_point(custom.main, flags(data, out, *given)) == 0
    return read_json(out / "metrics.json")


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_clues_and_proposals_of_other_layouts(voc, tmp_path, layout):
    data, split = (voc, "trainval") if layout == "voc" else (tmp_path / "coco", "train")
    if layout == "coco":
        write_odd_coco(data)
    metrics = run_stages(data, tmp_path / "run", "data,clues,proposals")
    assert metrics["dataset"]["train_images"] == COUNT
    stored = (tmp_path / "run" / "proposals" / split).glob("*/*.safetensors")
    records = open_tags(data, split).records
    assert {int(path.stem) for path in stored} == {one.image_id for one in records}
    assert len(records) == COUNT
    for one in records:
        assert (one.width, one.height) == upright(one.path)
        if layout == "coco":
            assert 1 <= one.image_id <= COUNT
        else:
            assert one.image_id >> 52 == 1, "names that are no number have ids of their hash"


def test_data_of_an_export_of_tfds(tmp_path):
    root, (source, sizes) = tmp_path / "VOC2007", odd_tfds()
    tfds.export_voc({**source, "test": source["train"][:3], "train": source["train"][3:]}, root)
    (root / "classes.txt").write_text("dog\n")
    dataset = run_stages(root, tmp_path / "run", "data")["dataset"]
    assert (dataset["train_images"], dataset["test_images"]) == (COUNT - 3, 3)
    paths = files_of(root, "trainval") | files_of(root, "test")
    plain = {unicodedata.normalize("NFC", name): size for name, size in sizes.items()}
    assert {unicodedata.normalize("NFC", name): upright(paths[name]) for name in paths} == plain

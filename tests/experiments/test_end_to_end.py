"""The main job at its smallest, from tagged images to the report."""

import json
import re
import resource
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from tiny_pipeline import ROOT, STAGES, environment, run_pipeline, stages_run

import weaksam_jax
from experiments import evaluate
from weaksam_jax.cli import entry_point
from weaksam_jax.data.store import read_manifest
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_metadata
from weaksam_jax.locks import LOCK

pytestmark = pytest.mark.slow  # the first test to come makes the undisturbed run


def metrics_of(out):
    return json.loads((out / "metrics.json").read_text())


def test_metrics_have_the_keys_of_the_contract(undisturbed):
    metrics = metrics_of(undisturbed.out)
    assert metrics["dataset"]["name"] == "VOC2007" and metrics["dataset"]["classes"] == 7
    assert (metrics["dataset"]["train_images"], metrics["dataset"]["test_images"]) == (8, 4)
    assert metrics["proposals"].keys() >= {"per_image", "recall"}
    assert metrics["proposals"]["recall"].keys() == {"0.50", "0.75", "0.90"}
    assert metrics["wsod"].keys() >= {"ap50", "ap", "corloc"}
    assert metrics["pgt"].keys() >= {"per_image", "precision50", "recall50"}
    assert metrics["retrain"].keys() >= {"ap50", "ap"}
    assert "iou" in metrics["masks"] and "segment" not in metrics
    assert metrics["seconds"].keys() == set(STAGES)
    assert metrics["seed"] == 0 and "jax" in metrics["versions"]


def test_files_are_where_the_contract_says(undisturbed):
    out = undisturbed.out
    settings = json.loads((out / "settings.json").read_text())
    assert settings["settings"]["retrain"]["optim"]["steps"] == 4 and settings["preset"] == "mini"
    for split, images in (("trainval", 8), ("test", 4)):
        assert len(read_manifest(out / "proposals", split)["images"]) == images
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines and lines[-1]["stage"] == "retrain" and lines[-1]["step"] == 4
    assert all(line.keys() >= {"step", "loss", "images_per_s"} for line in lines)
    assert not list(out.rglob("*.tmp")) and not list(out.glob("stages/*.started"))


def test_pseudo_truth_and_masks_load_in_pycocotools(undisturbed):
    pgt = COCO(str(undisturbed.out / "pgt" / "pgt.json"))
    masks = COCO(str(undisturbed.out / "masks" / "pseudo.json"))
    assert len(pgt.imgs) == len(masks.imgs) == 8 and len(pgt.cats) == 7
    assert 0 < len(masks.anns) <= len(pgt.anns)
    for annotation in masks.anns.values():
        image = masks.imgs[annotation["image_id"]]
        assert image["file_name"] == f"{annotation['image_id']:06d}.jpg"
        x, y, w, h = annotation["bbox"]
        assert 0 <= x <= x + w <= image["width"] and 0 <= y <= y + h <= image["height"]
        assert masks.annToMask(annotation).sum() == annotation["area"]


@pytest.mark.parametrize(
    "name", ["wsod/detections_train", "wsod/detections_test", "retrain/detections_test"]
)
def test_detections_are_coco_results_with_file_names(undisturbed, name):
    found = json.loads((undisturbed.out / f"{name}.json").read_text())
    assert found
    for one in found:
        assert one["file_name"] == f"{one['image_id']:06d}.jpg"
        assert 1 <= one["category_id"] <= 7 and 0 <= one["score"] <= 1
        assert len(one["bbox"]) == 4 and min(one["bbox"][2:]) > 0


class Loads(HTMLParser):
    """Collects everything that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.fetched, self.images = [], 0

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (name == "href" and tag != "a"):
                inside = (value or "").startswith(("data:", "#"))
                self.images += tag == "img" and inside
                self.fetched += [] if inside else [value]


def test_report_needs_no_network(undisturbed):
    text = (undisturbed.out / "report" / "index.html").read_text(encoding="utf-8")
    page = Loads()
    page.feed(text)
    assert page.fetched == [] and page.images > 8
    styles = re.sub(r"url\(\s*['\"]?(data:|#)", "", text)
    assert "@import" not in text and "url(" not in styles


def test_second_call_is_quick_and_changes_nothing(undisturbed):
    def times():
        return {path: path.stat().st_mtime_ns for path in undisturbed.out.rglob("*")}

    rewritten = {undisturbed.out / name for name in ("metrics.json", "settings.json", LOCK)}
    before, metrics = times(), metrics_of(undisturbed.out)
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    said = run_pipeline(undisturbed.data, undisturbed.out)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began
    assert stages_run(said) == [] and metrics_of(undisturbed.out) == metrics
    after = times()
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed - rewritten - {undisturbed.out} == set()
    assert seconds < 30  # of CPU: the machine may be busy with others


def test_changed_masks_are_made_again_and_nothing_before_them(undisturbed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed.out, out)
    said = run_pipeline(undisturbed.data, out, "--masks.clip-to-box")
    assert stages_run(said) == ["masks", "report"]
    for annotation in json.loads((out / "masks" / "pseudo.json").read_text())["annotations"]:
        x, y, w, h = annotation["bbox"]
        left, top, width, height = mask_utils.toBbox(annotation["segmentation"])
        assert left >= x - 1 and top >= y - 1
        assert left + width <= x + w + 1 and top + height <= y + h + 1


def test_the_ledger_names_every_file_of_weights(undisturbed):
    rows = metrics_of(undisturbed.out)["supervision"]
    assert rows.keys() == {"clues", "sam", "retrain_start"}
    assert rows["retrain_start"]["file"] == "wsod/params.safetensors"
    assert rows["retrain_start"]["source"] == "tags of VOC2007 trainval"
    seen = {use: row["supervision"] for use, row in rows.items()}
    assert seen == {"clues": "tags", "sam": "masks", "retrain_start": "tags"}
    assert not any("allowed" in row for row in rows.values())
    for stage in ("wsod", "retrain"):
        assert (
            read_metadata(undisturbed.out / stage / "params.safetensors")["supervision"] == "tags"
        )
    page = (undisturbed.out / "report" / "index.html").read_text()
    assert "Supervision ledger" in page and "Not weakly supervised" not in page


def test_dino_is_retrained_beside_faster_rcnn(undisturbed, with_both):
    out = with_both.out
    assert stages_run(with_both.said) == ["retrain_dino", "report"]
    metrics = metrics_of(out)
    assert metrics["retrain"] == metrics_of(undisturbed.out)["retrain"]
    assert metrics["retrain_dino"].keys() == {"ap50", "ap", "per_class"}
    assert metrics["supervision"]["retrain_dino_start"]["file"] == "wsod/params.safetensors"
    assert read_metadata(out / "retrain_dino" / "params.safetensors")["detector"] == "dino"
    page = (out / "report" / "index.html").read_text()
    assert "retrained detector (DINO)" in page and "AP50 DINO" in page
    photo = sorted((undisturbed.data / "JPEGImages").iterdir())[-1]
    stored = json.loads((out / "retrain_dino" / "detections_test.json").read_text())
    detector = weaksam_jax.load(out, threshold=0.0, masks=False, detector="dino")
    (found,) = detector.many([photo])  # as many at a time as the run: the same program
    assert len(found) == sum(one["file_name"] == photo.name for one in stored) > 0
    first = weaksam_jax.load(out, masks=False)
    assert (first.detector.kind, detector.detector.kind) == ("faster_rcnn", "dino")
    assert weaksam_jax.load(out, masks=False, detector="faster_rcnn").detector == first.detector
    with pytest.raises(BadInput, match="has no finished dino"):
        weaksam_jax.load(undisturbed.out, detector="dino")
    with pytest.raises(BadInput, match="dinoo is no detector that is retrained; did you mean dino"):
        weaksam_jax.load(out, detector="dinoo")


def test_evaluate_repeats_the_figures_of_the_run(undisturbed, tmp_path):
    metrics = metrics_of(undisturbed.out)

    def figures(detections, metric, *more):
        path = tmp_path / "figures.json"
        inputs = [
            "--detections",
            str(undisturbed.out / detections),
            "--data",
            str(undisturbed.data),
        ]
        command = [*inputs, "--metric", metric, "--json", str(path), *more]
        assert entry_point(evaluate.main, command) == 0
        return json.loads(path.read_text())

    retrain = metrics["retrain"]
    assert figures("retrain/detections_test.json", "voc07")["ap50"] == retrain["ap50"]
    assert figures("retrain/detections_test.json", "coco")["ap"] == retrain["ap"]
    located = figures("wsod/detections_train.json", "corloc")
    assert located["corloc"] == metrics["wsod"]["corloc"]
    assert figures("proposals", "recall")["recall"] == metrics["proposals"]["recall"]
    masks = figures("masks/pseudo.json", "voc-segm", "--split", "trainval")
    assert masks["masked_images"] == 8 and 0 <= masks["ap75"] <= masks["ap25"] <= 100


def test_predict_draws_a_new_photo(undisturbed, tmp_path):
    photo = tmp_path / "holiday.png"
    Image.open(undisturbed.data / "JPEGImages" / "000009.jpg").resize((150, 100)).save(photo)
    out = tmp_path / "predictions"
    command = ["--run", str(undisturbed.out), str(photo), "--out", str(out), "--threshold", "0"]
    subprocess.run(
        [sys.executable, "-m", "experiments.predict", *command],
        cwd=ROOT,
        env=environment(),
        check=True,
    )
    found = json.loads((out / "predictions.json").read_text())
    assert found
    for one in found:
        assert one["file_name"] == "holiday.png" and one["segmentation"]["size"] == [100, 150]
        assert mask_utils.area(one["segmentation"]) > 0
        x, y, w, h = one["bbox"]
        assert x >= 0 and y >= 0 and x + w <= 150 and y + h <= 100
    assert Image.open(out / "holiday.png").width >= 150


def test_tags_alone_run_the_pipeline_without_figures_that_need_truth(undisturbed, tmp_path):
    """The same images as `images/` + tags.csv: one for training without a tag, and all test images,
    as photographs are that one only wants to look at."""
    data, out = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(undisturbed.data / "JPEGImages", data / "images")
    main = undisturbed.data / "ImageSets" / "Main"
    lists = {path.stem: path.read_text() for path in sorted(main.glob("*_trainval.txt"))}
    classes = [name.removesuffix("_trainval") for name in lists]
    tags = {path.name: [] for path in sorted((data / "images").iterdir())}
    for name, text in zip(classes, lists.values(), strict=True):
        for image, flag in map(str.split, text.splitlines()):
            tags[f"{image}.jpg"] += [name] if flag == "1" else []
    tags["000008.jpg"] = []
    rows = [
        f"{n},{';'.join(t)},{'train' if n <= '000008.jpg' else 'test'}" for n, t in tags.items()
    ]
    (data / "tags.csv").write_text("\n".join(["file,tags,split", *rows]))
    (data / "classes.txt").write_text("\n".join(classes))
    said = run_pipeline(data, out)
    assert stages_run(said) == list(STAGES)
    metrics = metrics_of(out)
    assert metrics["dataset"]["negatives"] == 1 and metrics["dataset"]["train_images"] == 8
    assert metrics["proposals"].keys() == {"per_image"} and "retrain" not in metrics
    assert not metrics.get("clues"), "the test images have no tags to compare with"
    assert metrics["pgt"].keys() == {"per_image"} and metrics["masks"].keys() == {"per_image"}
    assert not metrics.get("wsod"), "AP and CorLoc need boxes"
    found = json.loads((out / "pgt" / "pgt.json").read_text())["annotations"]
    assert found and 8 not in {one["image_id"] for one in found}
    assert (out / "report" / "index.html").stat().st_size > 10_000

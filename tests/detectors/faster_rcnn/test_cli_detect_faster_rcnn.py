"""From a published .pth through bridge.convert and experiments.detect to detections and figures,
against the library's own detector on the same images."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_detectron2 import PlainDetector, msra_pixels, random_tensors
from small_torchvision import small_faster_rcnn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

import bridge.convert
from experiments import detect, detect_faster_rcnn
from weaksam_jax.backbones.resnet import ResNet50
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth
from weaksam_jax.data.images import load_image
from weaksam_jax.data.mini_set import CLASSES, write_mini
from weaksam_jax.data.padding import resize_and_pad
from weaksam_jax.data.store import proposal_path
from weaksam_jax.detectors.faster_rcnn import network
from weaksam_jax.detectors.faster_rcnn.recipes import voc07
from weaksam_jax.evaluate import voc_ap
from weaksam_jax.files import read_arrays, write_arrays

pytestmark = pytest.mark.usefixtures("compile_once")

WIDTH, CHANNELS, HIDDEN = 4, 8, 24
SIZES, CANONICAL = (16, 24, 40, 64, 96), 40
CANVAS, SCORE, DETECTIONS, PRE_NMS, POST_NMS = (192, 192), 0.15, 30, 100, 200
# The detector of torchvision's layout has an order of its own and a class that the data lacks.
NAMES = ("other", *reversed(CLASSES))
CLASSES_OF_DATA = tuple(sorted(CLASSES))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The recipe of VOC07 with a narrow ResNet and few channels, on one canvas."""
    settings = replace(
        voc07(), channels=CHANNELS, fc_width=HIDDEN, anchor_sizes=tuple((size,) for size in SIZES),
        canonical_size=CANONICAL, views=((CANVAS,),), mirrored=False, test_batch=2,
        test_pre_nms=PRE_NMS, test_post_nms=POST_NMS, score_threshold=SCORE,
        max_detections=DETECTIONS,
    )  # fmt: skip
    monkeypatch.setitem(detect.FASTER_RCNN, "small_faster_rcnn", lambda: settings)
    monkeypatch.setattr(network, "ResNet50", functools.partial(ResNet50, WIDTH))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_mini(tmp_path_factory.mktemp("data"), 0, 2, 3, progress=False)


@pytest.fixture(scope="module")
def theirs():
    """torchvision's own detector with random weights."""
    model = small_faster_rcnn(
        WIDTH, CHANNELS, len(NAMES), tuple((size,) for size in SIZES), HIDDEN,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=CANONICAL),
        rpn_pre_nms_top_n_test=PRE_NMS, rpn_post_nms_top_n_test=POST_NMS,
        box_detections_per_img=DETECTIONS, box_score_thresh=SCORE,
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.rpn.head.bbox_pred.weight *= 0.2
        model.rpn.head.cls_logits.weight *= 0.4
    return model


@pytest.fixture(scope="module")
def files(theirs, tmp_path_factory):
    """{layout: converted file}, made by the command from a .pth."""
    folder, made = tmp_path_factory.mktemp("files"), {}
    torch.save(theirs.state_dict(), folder / "torchvision.pth")
    tensors = random_tensors(WIDTH, CHANNELS, len(CLASSES), HIDDEN)
    torch.save({"model": tensors}, folder / "detectron2.pth")
    for layout, more in (("torchvision", ["--classes", ",".join(NAMES)]), ("detectron2", [])):
        made[layout] = folder / f"{layout}.safetensors"
        paths = ["--from", str(folder / f"{layout}.pth"), "--to", str(made[layout])]
        bridge.convert.main([f"faster_rcnn_{layout}", *paths, *more])
    return made


def flags(weights, data, out, *more):
    named = {"weights": weights, "data": data, "out": out, "preset": "small_faster_rcnn"}
    return [text for name, value in named.items() for text in (f"--{name}", str(value))] + [*more]


def on_canvas(pixels):
    height, width = pixels.shape[2:]
    return torch.nn.functional.pad(pixels, (0, CANVAS[1] - width, 0, CANVAS[0] - height))


def torchvision_found(model, image):
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    pixels = torch.tensor((image - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)[None]
    padded, size = on_canvas(pixels), tuple(image.shape[:2])
    features = model.backbone(padded)
    boxes, _ = model.rpn(ImageList(padded, [size]), features)
    (found,), _ = model.roi_heads(features, boxes, [size])
    labels = [NAMES[label - 1] for label in found["labels"]]
    return found["boxes"].tolist(), found["scores"].tolist(), labels


def detectron2_found(image):
    plain = PlainDetector(random_tensors(WIDTH, CHANNELS, len(CLASSES), HIDDEN), SIZES, CANONICAL)
    test = PRE_NMS, POST_NMS, SCORE, 0.5, DETECTIONS
    canvas = on_canvas(msra_pixels(image))
    scores, boxes, labels = plain.detect(canvas, image.shape[:2], *test)
    return boxes, scores, [CLASSES_OF_DATA[label] for label in labels]


@pytest.mark.parametrize("layout", ["torchvision", "detectron2"])
def test_a_published_file_detects_as_its_library(layout, theirs, files, data, tmp_path, capsys):
    out, comp4 = tmp_path / "out", tmp_path / "comp4"
    command = flags(files[layout], data, out, "--split", "test", "--voc-files", str(comp4))
    assert entry_point(detect.main, command) == 0
    results = json.loads((out / "detections.json").read_text())
    split = open_tags(data, "test")
    assert split.classes == CLASSES_OF_DATA
    compared = 0
    for record in split.records:
        image = load_image(record.path)
        view, _, size = resize_and_pad(image, np.zeros((0, 4), np.float32), CANVAS)
        view = view[: size[0], : size[1]]
        with torch.no_grad():
            wanted = torchvision_found(theirs, view) if layout == "torchvision" else None
            boxes, scores, labels = wanted or detectron2_found(view)
        known = [i for i, name in enumerate(labels) if name in split.classes]
        mine = [one for one in results if one["image_id"] == record.image_id]
        assert len(mine) == len(known)
        for one, i in zip(mine, known, strict=True):
            assert split.classes[split.category_ids.index(one["category_id"])] == labels[i]
            assert one["score"] == pytest.approx(scores[i], abs=1e-4)
            x, y, w, h = one["bbox"]
            factor = np.array([record.width / size[1], record.height / size[0]] * 2)
            np.testing.assert_allclose([x, y, x + w, y + h], boxes[i] * factor, atol=0.05)
            compared += 1
    assert compared > 10
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["voc12"] == voc_ap(results, open_truth(data, "test"), rule="12")
    assert f"{metrics['voc07']['ap50']:6.2f}" in capsys.readouterr().out
    rows = [path.read_text().splitlines() for path in comp4.glob("comp4_det_test_*.txt")]
    assert len(rows) == len(CLASSES) and sum(map(len, rows)) == len(results)
    told = json.loads((out / "settings.json").read_text())["settings"]
    stated = {
        "torchvision": ("resnet50", False, True), "detectron2": ("resnet50_msra", True, False)
    }  # fmt: skip
    assert (told["backbone"], told["aligned"], told["round_anchors"]) == stated[layout]


def test_a_stopped_detection_goes_on(files, data, tmp_path, monkeypatch):
    from weaksam_jax.detectors.faster_rcnn import detect as retrain_detect

    whole = flags(files["detectron2"], data, tmp_path / "whole")
    detect.main(whole)
    monkeypatch.setattr(detect_faster_rcnn, "PART", 1)
    shown, run = [], retrain_detect.detect_retrain

    def stops(params, split, *rest, **options):
        if len(shown) == 1:
            shown.append("stop")
            raise KeyboardInterrupt
        shown.append(split.records[0].image_id)
        return run(params, split, *rest, **options)

    monkeypatch.setattr(retrain_detect, "detect_retrain", stops)
    parts = flags(files["detectron2"], data, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        detect.main(parts)
    assert not (tmp_path / "parts" / "detections.json").exists()
    detect.main(parts)
    ids = [record.image_id for record in open_tags(data, "test").records]
    assert shown == [ids[0], "stop", *ids[1:]]
    both = [(tmp_path / name / "detections.json").read_bytes() for name in ("whole", "parts")]
    assert both[0] == both[1]
    assert not (tmp_path / "parts" / "unfinished.jsonl").exists()


def test_stored_clues_weigh_the_scores(files, data, tmp_path):
    split, rng = open_tags(data, "test"), np.random.default_rng(0)
    logits = {}
    for record in split.records:
        logits[record.image_id] = rng.normal(size=len(split.classes)).astype(np.float32)
        path = proposal_path(tmp_path / "clues", "test", record.image_id)
        write_arrays(path, {"class_logits": logits[record.image_id]})
    found = {}
    for power in ("0", "2"):
        more = ["--settings.tag-power", power, "--clues", str(tmp_path / "clues")]
        detect.main(flags(files["detectron2"], data, tmp_path / power, *more))
        results = json.loads((tmp_path / power / "detections.json").read_text())
        place = ("image_id", "category_id", "bbox")
        found[power] = {str([one[name] for name in place]): one for one in results}
    assert found["2"].keys() == found["0"].keys()
    for key, one in found["2"].items():
        logit = logits[one["image_id"]][split.category_ids.index(one["category_id"])]
        expected = found["0"][key]["score"] / (1 + np.exp(-logit)) ** 2
        assert one["score"] == pytest.approx(expected, abs=2e-6)


def refusal(command, capsys):
    assert entry_point(detect.main, command) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    return line


def test_what_does_not_fit_ends_in_one_line(files, data, tmp_path, capsys):
    out, path = tmp_path / "out", tmp_path / "w.safetensors"
    arrays, metadata = read_arrays(files["detectron2"])

    def told(metadata, arrays=arrays, *more):
        write_arrays(path, arrays, metadata)
        return refusal(flags(path, data, out, *more), capsys)

    few = {name: value for name, value in arrays.items() if name != "fpn/output0/bias"}
    assert f"{path}: fpn/output0/bias is missing" in told(metadata, few)
    assert f"{path}: is no Faster R-CNN" in told({}, {"cls/bias": np.zeros(3)})
    six = arrays | {"box_head/cls/bias": np.zeros(6, np.float32)}
    assert f"{path}: has 5 classes, VOC2007 has 7" in told({}, six)
    assert f"{path}: does not know {CLASSES_OF_DATA[0]}" in told({"classes": '["cat", "dog"]'})
    assert "--clues: are missing" in told(metadata, arrays, "--settings.tag-power", "1")
    assert "--proposals: is not for" in told(metadata, arrays, "--proposals", str(tmp_path))
    mil = flags(path, data, out)
    mil[mil.index("small_faster_rcnn")] = "mini"
    assert "--proposals: is missing, which mini needs" in refusal(mil, capsys)
    assert not (out / "detections.json").exists()

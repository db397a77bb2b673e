"""From a published .pth through bridge.convert and experiments.detect to detections and figures,
against the library's own detector on the same images."""

import json

import jax
import numpy as np
import pytest
import torch
from plain_detectron2 import PlainDetector, msra_pixels, random_tensors
from small_torchvision import small_faster_rcnn
from torchvision.models.detection.image_list import ImageList

import bridge.convert
from experiments import detect
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth
from weaksam_jax.data.images import load_image
from weaksam_jax.data.mini_set import CLASSES, write_mini
from weaksam_jax.data.padding import resize_and_pad
from weaksam_jax.data.pixel_statistics import IMAGENET_MEAN_255, IMAGENET_STD_255
from weaksam_jax.data.store import write_stored
from weaksam_jax.detectors import save_detector
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.detectors.mil import MilConfig, MilDetector
from weaksam_jax.evaluate import voc_ap
from weaksam_jax.files import read_arrays, write_arrays

WIDTH, CHANNELS, HIDDEN = 4, 8, 24
SIZES = (32, 64, 128, 256, 512)
PADDED, SCORE, DETECTIONS, PRE_NMS, POST_NMS = (192, 192), 0.15, 30, 100, 200
# The test settings of a small detector, in the place of the published ones.
TEST = {
    "tta_scales": [[PADDED]],
    "tta_flip": False,
    "batch_size": 2,
    "pre_nms": PRE_NMS,
    "post_nms": POST_NMS,
}
LIBRARY = {
    "torchvision": ("resnet50", False, True),
    "detectron2": ("resnet50_msra", True, False),
}
# The detector of torchvision's layout has an order of its own and a class that the data lacks.
NAMES = ("other", *reversed(CLASSES))
CLASSES_OF_DATA = tuple(sorted(CLASSES))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_mini(tmp_path_factory.mktemp("data"), 0, 2, 3, progress=False)


@pytest.fixture(scope="module")
def theirs():
    """torchvision's own detector with random weights."""
    model = small_faster_rcnn(
        WIDTH, CHANNELS, len(NAMES), tuple((size,) for size in SIZES), HIDDEN,
        rpn_pre_nms_top_n_test=PRE_NMS, rpn_post_nms_top_n_test=POST_NMS,
        box_detections_per_img=DETECTIONS, box_score_thresh=SCORE,
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.rpn.head.bbox_pred.weight *= 0.2
        model.rpn.head.cls_logits.weight *= 0.4
    return model


def convert(layout, state, folder, *more):
    """The file that the command makes, with small test settings."""
    torch.save(state, folder / f"{layout}.pth")
    path = folder / f"{layout}.safetensors"
    paths = ["--from", str(folder / f"{layout}.pth"), "--to", str(path)]
    bridge.convert.main([f"faster_rcnn_{layout}", *paths, *more])
    arrays, metadata = read_arrays(path)
    config = json.loads(metadata["config"])
    config["test"] |= TEST
    write_arrays(path, arrays, metadata | {"config": json.dumps(config)})
    return path


@pytest.fixture(scope="module")
def files(theirs, tmp_path_factory):
    """{layout: converted file}, made by the command from a .pth."""
    folder = tmp_path_factory.mktemp("files")
    tensors = random_tensors(WIDTH, CHANNELS, len(CLASSES), HIDDEN)
    named = ["--classes", ",".join(NAMES)]
    return {
        "torchvision": convert("torchvision", theirs.state_dict(), folder, *named),
        "detectron2": convert("detectron2", {"model": tensors}, folder),
    }


def flags(weights, data, out, *more):
    named = {"--weights": weights, "--data": data, "--out": out}
    named |= {"--test.score-threshold": SCORE, "--test.max-detections": DETECTIONS}
    return [text for pair in named.items() for text in map(str, pair)] + [*more]


def in_padding(pixels):
    height, width = pixels.shape[2:]
    return torch.nn.functional.pad(pixels, (0, PADDED[1] - width, 0, PADDED[0] - height))


def torchvision_found(model, image):
    pixels = (image - np.float32(IMAGENET_MEAN_255)) / np.float32(IMAGENET_STD_255)
    padded, size = in_padding(torch.tensor(pixels).permute(2, 0, 1)[None]), tuple(image.shape[:2])
    features = model.backbone(padded)
    boxes, _ = model.rpn(ImageList(padded, [size]), features)
    (found,), _ = model.roi_heads(features, boxes, [size])
    labels = [NAMES[label - 1] for label in found["labels"]]
    return found["boxes"].tolist(), found["scores"].tolist(), labels


def detectron2_found(image):
    plain = PlainDetector(random_tensors(WIDTH, CHANNELS, len(CLASSES), HIDDEN), SIZES)
    test = PRE_NMS, POST_NMS, SCORE, 0.5, DETECTIONS
    scores, boxes, labels = plain.detect(in_padding(msra_pixels(image)), image.shape[:2], *test)
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
        view, _, size = resize_and_pad(image, np.zeros((0, 4), np.float32), PADDED)
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
    model = json.loads((out / "settings.json").read_text())["config"]["model"]
    told = tuple(model[name] for name in ("backbone", "aligned", "round_anchors"))
    assert told == LIBRARY[layout]


def test_a_stopped_detection_goes_on(files, data, tmp_path, monkeypatch):
    detect.main(flags(files["detectron2"], data, tmp_path / "whole"))
    shown, made = [], FasterRcnn.predictor

    def stops(self, params):
        predict = made(self, params)

        def predictor(views):
            if len(shown) == 1:
                shown.append("stop")
                raise KeyboardInterrupt
            shown.append("batch")
            return predict(views)

        return predictor

    monkeypatch.setattr(FasterRcnn, "predictor", stops)
    parts = flags(files["detectron2"], data, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        detect.main(parts)
    assert not (tmp_path / "parts" / "detections.json").exists()
    detect.main(parts)
    # Three images, two in a batch: the first batch is not shown again.
    assert shown == ["batch", "stop", "batch"]
    both = [(tmp_path / name / "detections.json").read_bytes() for name in ("whole", "parts")]
    assert both[0] == both[1]
    assert not (tmp_path / "parts" / "unfinished.jsonl").exists()


def test_stored_clues_weigh_the_scores(files, data, tmp_path):
    split, rng = open_tags(data, "test"), np.random.default_rng(0)
    logits = {}
    for record in split.records:
        logits[record.image_id] = rng.normal(size=len(split.classes)).astype(np.float32)
        arrays = {"class_logits": logits[record.image_id]}
        write_stored(tmp_path / "clues", "test", record.image_id, arrays=arrays, metadata={})
    found = {}
    for power in ("0", "2"):
        more = ["--test.tag-power", power, "--clues", str(tmp_path / "clues")]
        detect.main(flags(files["detectron2"], data, tmp_path / power, *more))
        results = json.loads((tmp_path / power / "detections.json").read_text())
        place = ("image_id", "category_id", "bbox")
        found[power] = {str([one[name] for name in place]): one for one in results}
    assert found["2"].keys() == found["0"].keys()
    for key, one in found["2"].items():
        logit = logits[one["image_id"]][split.category_ids.index(one["category_id"])]
        expected = found["0"][key]["score"] / (1 + np.exp(-logit)) ** 2
        assert one["score"] == pytest.approx(expected, rel=1e-5)


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
    assert f"{path}: has no tensor fpn/output0/bias" in told(metadata, few)
    assert f"{path}: is no file of a detector" in told({}, {"cls/bias": np.zeros(3)})
    named = metadata | {"classes": json.dumps([f"class {i}" for i in range(len(CLASSES))])}
    assert f"{path}: does not know {CLASSES_OF_DATA[0]}" in told(named)
    assert "--clues: are missing" in told(metadata, arrays, "--test.tag-power", "1")
    assert "--proposals: is not for" in told(metadata, arrays, "--proposals", str(tmp_path))
    tensors = {"model": random_tensors(WIDTH, CHANNELS, 5, HIDDEN)}
    five = convert("detectron2", tensors, tmp_path)
    assert f"{five}: has 5 classes, VOC2007 has 7" in refusal(flags(five, data, out), capsys)
    mil = MilDetector(MilConfig(), CLASSES_OF_DATA)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), mil.shapes())
    save_detector(path, mil, zeros)
    command = ["--weights", str(path), "--data", str(data), "--out", str(out)]
    assert "--proposals: is missing, which the detector (mil) needs" in refusal(command, capsys)
    assert not (out / "detections.json").exists()

"""Pseudo masks against SamPredictor, read back by pycocotools; killed and resumed."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from small_sam import blocky_image, small_sam

from bridge.sam import pseudo_masks as module
from bridge.sam.packed_masks import unpack
from bridge.sam.pseudo_masks import MaskConfig, box_masks, pseudo_masks
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json

HEIGHT, WIDTH = 50, 70
BOXES = np.asarray([[5, 4, 40, 30], [20, 10, 69.5, 50], [0, 0, 70, 50], [30, 20, 34, 24]], float)


@pytest.fixture(scope="module")
def sam():
    sam = small_sam()
    sam.mask_threshold = 2.0  # box prompts of the random SAM have lower logits than points
    return sam


@pytest.fixture
def split(tmp_path):
    records = []
    for i in range(3):
        path = tmp_path / f"{i}.png"
        Image.fromarray(blocky_image(i, HEIGHT, WIDTH)).save(path)
        records.append(TagRecord(7 + i, path.name, path, WIDTH, HEIGHT, (0,)))
    return TagSplit("toy", "train", ("a",), (1,), tuple(records))


def make_pgt(split, boxes=BOXES):
    annotations = []
    for record in split.records[1:]:  # the first image has no box
        for k, (x1, y1, x2, y2) in enumerate(boxes):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": 0.9 - k / 10,
                }
            )
    images = [
        {"id": r.image_id, "file_name": r.file_name, "width": r.width, "height": r.height}
        for r in split.records
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}],
    }


def predicted(sam, image, box, three):
    from segment_anything import SamPredictor

    predictor = SamPredictor(sam)
    predictor.set_image(image)
    found, scores, _ = predictor.predict(box=np.asarray(box) - [0, 0, 1, 1], multimask_output=three)
    return found[scores.argmax()], scores.max()


@pytest.mark.parametrize("three", [False, True])
def test_masks_are_the_predictors_and_load_in_pycocotools(sam, split, tmp_path, three):
    out = tmp_path / "masks" / "pseudo.json"
    settings = MaskConfig(best_of_three=three, chunk=3)
    report = pseudo_masks(sam, make_pgt(split), split, settings, out, progress=False)
    coco = COCO(str(out))
    assert coco.getImgIds() == [7, 8, 9]
    expected, empty = {}, 0
    for annotation in make_pgt(split)["annotations"]:
        record = split.records[annotation["image_id"] - 7]
        image = np.asarray(Image.open(record.path))
        x, y, w, h = annotation["bbox"]
        mask, score = predicted(sam, image, [x, y, x + w, y + h], three)
        expected[annotation["id"]] = annotation, mask, score
        empty += not mask.any()
    assert report.empty == empty and report.masks == 8 - empty == len(coco.anns) > 2
    for annotation in coco.anns.values():
        pgt, mask, score = expected[annotation["id"]]
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum() and isinstance(annotation["area"], int)
        assert annotation["predicted_iou"] == pytest.approx(score, abs=1e-3)
        assert isinstance(annotation["segmentation"]["counts"], str)
        for key in ("bbox", "score", "category_id", "image_id"):
            assert annotation[key] == pgt[key]


def test_clipping_and_empty_masks(sam):
    image = blocky_image(1, HEIGHT, WIDTH)
    boxes = BOXES.astype(np.float32)
    free, _, _ = box_masks(sam, image, boxes, MaskConfig())
    cut, _, _ = box_masks(sam, image, boxes, MaskConfig(clip_to_box=True))
    free, cut = unpack(free, WIDTH), unpack(cut, WIDTH)
    for mask, clipped, box in zip(free, cut, np.round(boxes + 0.01).astype(int), strict=True):
        expected = np.zeros_like(mask)
        x1, y1, x2, y2 = box
        expected[y1:y2, x1:x2] = mask[y1:y2, x1:x2]
        np.testing.assert_array_equal(clipped, expected)
    assert cut.sum() < free.sum()

    silent = small_sam()
    silent.mask_threshold = 1e6
    dropped, _, empty = box_masks(silent, image, boxes, MaskConfig())
    assert empty.all() and not dropped.any()
    filled, _, empty = box_masks(silent, image, boxes, MaskConfig(empty="box"))
    assert empty.all()
    areas = unpack(filled, WIDTH).sum((1, 2))
    np.testing.assert_array_equal(areas, [35 * 26, 50 * 40, 70 * 50, 16])


def test_dropped_boxes_are_counted(split, tmp_path):
    silent = small_sam()
    silent.mask_threshold = 1e6
    out = tmp_path / "pseudo.json"
    report = pseudo_masks(silent, make_pgt(split), split, MaskConfig(), out, progress=False)
    assert (report.masks, report.empty) == (0, 8) and read_json(out)["annotations"] == []
    filled = MaskConfig(empty="box")
    report = pseudo_masks(silent, make_pgt(split), split, filled, out, progress=False)
    assert (report.masks, report.empty) == (8, 8)
    rle = read_json(out)["annotations"][0]["segmentation"]
    assert coco_mask.toBbox(rle).tolist() == [5, 4, 35, 26]


def test_killed_run_goes_on_and_ends_in_the_same_bytes(sam, split, tmp_path, monkeypatch):
    pgt, settings = make_pgt(split), MaskConfig()
    whole, killed = tmp_path / "whole.json", tmp_path / "killed.json"
    pseudo_masks(sam, pgt, split, settings, whole, progress=False, workers=3)
    loaded = []

    def load(path):
        if len(loaded) == 1:
            raise KeyboardInterrupt
        loaded.append(path)
        return blocky_image(1, HEIGHT, WIDTH)

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_image", load)
        with pytest.raises(KeyboardInterrupt):
            pseudo_masks(sam, pgt, split, settings, killed, progress=False, workers=1)
    assert not killed.exists() and not list(tmp_path.rglob("*.tmp"))
    with monkeypatch.context() as patch:
        again = []
        original = module.load_image
        patch.setattr(module, "load_image", lambda p: again.append(p) or original(p))
        pseudo_masks(sam, pgt, split, settings, killed, progress=False)
    assert again == [split.records[2].path]
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.glob("*.json*")) == ["killed.json", "whole.json"]


def test_parts_of_other_boxes_are_not_used(sam, split, tmp_path, monkeypatch):
    out = tmp_path / "pseudo.json"
    monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # as if killed just before
    pseudo_masks(sam, make_pgt(split), split, MaskConfig(), out, progress=False)
    moved = make_pgt(split, BOXES[::-1])
    pseudo_masks(sam, moved, split, MaskConfig(), out, progress=False)
    fresh = tmp_path / "fresh.json"
    pseudo_masks(sam, moved, split, MaskConfig(), fresh, progress=False)
    assert out.read_bytes() == fresh.read_bytes()


def test_boxes_without_an_image_are_bad_input(sam, split, tmp_path):
    fewer = replace(split, records=split.records[:2])
    with pytest.raises(BadInput, match="9"):
        pseudo_masks(sam, make_pgt(split), fewer, MaskConfig(), tmp_path / "x.json", False)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pgt: pgt.pop("categories"),
        lambda pgt: pgt.update(images=None),
        lambda pgt: pgt["annotations"].append(None),
        lambda pgt: pgt["annotations"][3].pop("bbox"),
        lambda pgt: pgt["annotations"][3].update(bbox=[1, 2, float("nan"), 3]),
        lambda pgt: pgt["annotations"][3].update(category_id=[]),
    ],
)
def test_what_is_no_pseudo_ground_truth_is_refused(sam, split, tmp_path, spoil):
    pgt = make_pgt(split)
    spoil(pgt)
    with pytest.raises(BadInput):
        pseudo_masks(sam, pgt, split, MaskConfig(), tmp_path / "x.json", False)
    assert not (tmp_path / "x.json").exists()


def test_numbers_as_text_are_read(sam, split, tmp_path):
    plain, text = make_pgt(split), make_pgt(split)
    for one in text["annotations"]:
        one["bbox"] = [str(value) for value in one["bbox"]]
    files = [tmp_path / "plain.json", tmp_path / "text.json"]
    for pgt, file in zip((plain, text), files, strict=True):
        pseudo_masks(sam, pgt, split, MaskConfig(), file, False)
    assert files[0].read_bytes() == files[1].read_bytes()

"""Nothing but tags reaches training: boxes and masks removed, the same bits come out."""

import json
import re
import shutil

import pytest
from tiny_pipeline import assert_same_results, run_pipeline


@pytest.mark.slow
def test_boxes_and_masks_of_the_training_images_have_no_part_in_the_pipeline(undisturbed, tmp_path):
    data, out = tmp_path / "VOC2007", tmp_path / "run"
    shutil.copytree(undisturbed.data, data)
    removed = 0
    for name in (data / "ImageSets" / "Main" / "trainval.txt").read_text().split():
        annotation = data / "Annotations" / f"{name}.xml"
        text, count = re.subn("<bndbox>.*?</bndbox>", "", annotation.read_text(), flags=re.DOTALL)
        annotation.write_text(text)
        removed += count
        for folder in ("SegmentationObject", "SegmentationClass"):
            (data / folder / f"{name}.png").unlink()
    assert removed > 8, "there was something to leak"
    run_pipeline(data, out)
    assert_same_results(undisturbed.out, out)
    with_truth = json.loads((undisturbed.out / "metrics.json").read_text())
    without = json.loads((out / "metrics.json").read_text())
    assert "recall" not in without["proposals"] and "precision50" not in without["pgt"]
    assert without["retrain"] == with_truth["retrain"], "the test images kept their boxes"

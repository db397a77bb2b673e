"""`weaksam_jax.load`: what predict does, in Python, of a run folder and of a weights file."""

import jax
import numpy as np
import pytest
from configs import vary

import weaksam_jax
from weaksam_jax.data.images import load_image
from weaksam_jax.detectors import save_detector
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.detectors.mil.config import MilConfig
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json
from weaksam_jax.run_folder import RunFolder


@pytest.fixture(scope="module")
def photo(undisturbed):
    return sorted((undisturbed.data / "JPEGImages").iterdir())[-1]


@pytest.mark.slow
def test_a_run_finds_what_its_own_detections_say(undisturbed, photo):
    detector = weaksam_jax.load(undisturbed.out, threshold=0.0)
    found, image = detector(photo), load_image(photo)
    stored = [
        one
        for one in read_json(RunFolder(undisturbed.out).detections("retrain", "test"))
        if one["file_name"] == photo.name
    ]
    assert len(found) == len(stored) > 0
    np.testing.assert_allclose(found.scores, [one["score"] for one in stored], rtol=1e-6)
    corners = np.asarray([one["bbox"] for one in stored])
    corners[:, 2:] += corners[:, :2]
    np.testing.assert_allclose(found.boxes, corners, atol=0.02)  # stored with 2 decimals
    assert found.masks.shape == (len(found), *image.shape[:2]) and found.masks.dtype == bool
    assert found.names == tuple(detector.classes[label] for label in found.labels)
    np.testing.assert_array_equal(found.image, image)
    same = detector(image)  # an array in place of a path
    np.testing.assert_array_equal(same.boxes, found.boxes)
    several = list(detector.many([photo, image, photo], batch_size=2))
    assert [len(one) for one in several] == [len(found)] * 3


@pytest.mark.slow
def test_a_weights_file_has_boxes_alone(undisturbed, photo):
    weights = RunFolder(undisturbed.out).weights("retrain")
    found = weaksam_jax.load(weights, threshold=0.0)(photo)
    assert len(found) and found.masks is None
    assert (found.scores >= weaksam_jax.load(weights).threshold).sum() == len(
        weaksam_jax.load(weights)(photo)
    )


def test_a_file_without_names_has_numbered_classes(tmp_path):
    config = vary(FasterRcnn.presets["mini"](), model={"channels": 8, "fc_width": 8})
    detector = FasterRcnn(config, 3)
    batch = {"image": np.zeros((1, 64, 64, 3), np.uint8)}
    save_detector(tmp_path / "f.safetensors", detector, detector.init(jax.random.key(0), batch))
    loaded = weaksam_jax.load(tmp_path / "f.safetensors")
    assert loaded.classes == ("class 0", "class 1", "class 2")


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(BadInput, match=r"has no finished stage retrain .*; finish it"):
        weaksam_jax.load(tmp_path)
    with pytest.raises(BadInput, match="does not exist"):
        weaksam_jax.load(tmp_path / "gone.safetensors")
    detector = MilDetector(MilConfig(), 2)
    shapes = detector.shapes()
    params = jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), shapes)
    save_detector(tmp_path / "mil.safetensors", detector, params)
    with pytest.raises(BadInput, match="needs proposals of every photo"):
        weaksam_jax.load(tmp_path / "mil.safetensors")
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = weaksam_jax.lod


@pytest.mark.parametrize("given", [{"sam": "sam_mini"}, {"clues": "x.safetensors"}])
def test_networks_beside_a_file_of_weights_are_refused(undisturbed, given):
    weights = undisturbed.out / "retrain" / "params.safetensors"
    with pytest.raises(BadInput, match=f"with which {next(iter(given))} is not used"):
        weaksam_jax.load(weights, **given)

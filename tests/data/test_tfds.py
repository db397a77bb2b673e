import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.data.formats import tfds
from weaksam_jax.data.formats.voc import VOC_CLASSES
from weaksam_jax.errors import BadInput


def example(name: str, objects: list[tuple[str, tuple[int, int, int, int], bool]]) -> dict:
    """What `tfds.data_source("voc/2007", decoders={"image": SkipDecoding()})` yields.

    Types as tensorflow-datasets 4.9.10 gives them for VOC's features: bytes, and objects as
    columns of NumPy scalars; boxes are float32 shares (ymin, xmin, ymax, xmax) of VOC's corners.
    """
    data = BytesIO()
    Image.fromarray(np.full((333, 500, 3), 99, np.uint8)).save(data, "JPEG")
    shares = [(b[1] / 333, b[0] / 500, b[3] / 333, b[2] / 500) for _, b, _ in objects]
    return {
        "image": data.getvalue(),
        "image/filename": f"{name}.jpg".encode(),
        "objects": {
            "label": [np.int64(VOC_CLASSES.index(label)) for label, *_ in objects],
            "bbox": [np.array(share, np.float32) for share in shares],
            "is_difficult": [np.bool_(hard) for *_, hard in objects],
            "is_truncated": [np.bool_(False) for _ in objects],
        },
    }


SOURCE = {
    "train": [example("000012", [("car", (156, 97, 351, 270), False)])],
    "validation": [
        example("000007", [("dog", (1, 1, 500, 333), False), ("cat", (7, 9, 11, 300), True)])
    ],
    "test": [example("000001", [("person", (8, 12, 352, 333), False)])],
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKSAM_DATA", str(tmp_path))
    monkeypatch.setattr(tfds, "_data_source", lambda name: SOURCE)
    return tmp_path / "tfds"


def test_export_reads_back_as_the_data_set(cache, monkeypatch):
    assert split_names("tfds:voc/2007") == {"train": "trainval", "test": "test"}
    monkeypatch.setattr(tfds, "_data_source", None)  # from now on the folder is used
    tags, truth = open_tags("tfds:voc/2007", "trainval"), open_truth("tfds:voc/2007", "trainval")
    assert [record.image_id for record in tags.records] == [7, 12]
    assert [[tags.classes[t] for t in r.tags] for r in tags.records] == [["dog"], ["car"]]
    assert truth.records[0].boxes.tolist() == [[0, 0, 500, 333], [6, 8, 11, 300]]
    assert truth.records[0].difficult.tolist() == [False, True]
    assert truth.records[1].boxes.tolist() == [[155, 96, 351, 270]]
    data = (cache / "voc-2007" / "VOC2007" / "JPEGImages" / "000012.jpg").read_bytes()
    assert data == SOURCE["train"][0]["image"]
    assert [p.name for p in (cache / "voc-2007").iterdir()] == ["VOC2007"]


def test_corners_survive_float32_shares(tmp_path):
    rng = np.random.default_rng(0)
    low = rng.integers(1, [250, 160], size=(200, 2))
    corners = np.concatenate([low, rng.integers([250, 160], [501, 334], size=(200, 2))], 1)
    objects = [("cat", tuple(box), False) for box in corners.tolist()]
    source = SOURCE | {"train": [example("000003", objects)]}
    tfds.export_voc(source, tmp_path / "VOC2007")
    boxes = open_truth(tmp_path, "train").records[0].boxes
    np.testing.assert_array_equal(boxes, corners - [1, 1, 0, 0])


def test_split_without_annotations(tmp_path):
    source = SOURCE | {"test": [example("2008_000001", [])]}
    tfds.export_voc(source, tmp_path / "VOC2012")
    assert split_names(tmp_path) == {"train": "train", "test": "val"}


def test_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    broken = SOURCE | {"test": [{"image/filename": b"000001.jpg", "image": b"no image"}]}
    with pytest.raises(
        BadInput, match=r"export test, example 1: 000001\.jpg: image cannot be read"
    ):
        tfds.export_voc(broken, tmp_path / "VOC2007")
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_and_unknown_name(tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKSAM_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # import raises ImportError
    with pytest.raises(BadInput, match=r"pip install 'weaksam-jax\[tfds\]'"):
        open_tags("tfds:voc/2007", "trainval")
    with pytest.raises(BadInput, match="tfds:coco/2017: is no data set of this adapter"):
        open_tags("tfds:coco/2017", "train")

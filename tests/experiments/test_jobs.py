"""Where the main jobs find their data set, and what they make of the flags."""

import pytest
from tiny_pipeline import options

from experiments.pipeline.jobs import JOBS
from weaksam_jax.errors import BadInput


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working folder, and no $WEAKSAM_DATA."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEAKSAM_DATA", raising=False)
    return tmp_path


def make(path):
    """A folder with the file by which a data set is known."""
    if path.suffix:
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    else:
        path.mkdir(parents=True)


TRAIN = "annotations/instances_train2014.json"
PLACES = [
    ("voc07", "VOCdevkit/VOC2007/ImageSets/Main", "VOCdevkit/VOC2007"),
    ("voc07", "VOC2007/ImageSets/Main", "VOC2007"),
    ("voc12", "VOCdevkit/VOC2012/ImageSets/Main", "VOCdevkit/VOC2012"),
    ("voc12", "VOC2012/ImageSets/Main", "VOC2012"),
    ("coco14", TRAIN, "."),
    ("coco14", f"coco/{TRAIN}", "coco"),
    ("coco14", f"MSCOCO 2014/{TRAIN}", "MSCOCO 2014"),
]


@pytest.mark.parametrize(("job", "file", "found"), PLACES)
@pytest.mark.parametrize("root", ["data", "elsewhere"])
def test_the_data_set_is_found(place, monkeypatch, root, job, file, found):
    if root == "elsewhere":
        monkeypatch.setenv("WEAKSAM_DATA", str(place / root))
    make(place / root / file)
    data = options(job=job).data
    assert (place / data).resolve() == (place / root / found).resolve()
    assert options(job=job).preset == "light"
    others = {name for name in ("voc07", "voc12", "coco14") if name != job}
    assert all(options(job=name).data == "mini" for name in others)


def test_the_environment_comes_before_the_working_folder(place, monkeypatch):
    monkeypatch.setenv("WEAKSAM_DATA", str(place / "first"))
    for root in ("data", "first"):
        make(place / root / "VOC2012" / "ImageSets" / "Main")
    assert options(job="voc12").data == str(place / "first" / "VOC2012")


@pytest.mark.parametrize("job", ["voc07", "voc12", "coco14"])
def test_without_data_it_is_the_mini_set(job):
    found = options(job=job)
    assert (found.data, found.preset) == ("mini", "mini") and str(found.out) == "runs/mini-mini"


def test_every_data_set_has_its_rule_of_ap():
    rules = {name: options("--data", "mini", job=name).settings.ap50 for name in JOBS}
    assert rules == {"voc07": "voc07", "voc12": "voc12", "coco14": "coco", "custom": "voc07"}


def test_tfds_is_the_jobs_own():
    assert options("--data", "tfds", job="voc12").data == "tfds:voc/2012"
    assert str(options("--data", "tfds", job="voc07").out) == "runs/2007-light"
    for job in ("coco14", "custom"):
        with pytest.raises(BadInput, match=f"--data: tfds has no data set for {job}"):
            options("--data", "tfds", job=job)

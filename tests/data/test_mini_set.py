import itertools
from collections import Counter
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from weaksam_jax.boxes import area, containment
from weaksam_jax.data.datasets import open_tags, open_truth, split_names, verify_images
from weaksam_jax.data.mini_set import CLASSES, draw_scene, write_mini
from weaksam_jax.data.mini_set.art import ARTISTS
from weaksam_jax.data.mini_set.paint import Pose, silhouette

TRAIN = 300


@pytest.fixture(scope="module")
def scenes():
    """The training scenes of seed 0, as `write_mini` draws them."""
    return [draw_scene(0, index) for index in range(1, TRAIN + 1)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("mini")
    write_mini(path, seed=3, train_images=24, test_images=12, progress=False)
    return path


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_same_seed_same_bytes(small, tmp_path):
    write_mini(tmp_path / "again", seed=3, train_images=24, test_images=12, progress=False)
    write_mini(tmp_path / "other", seed=4, train_images=24, test_images=12, progress=False)
    assert files(small) == files(tmp_path / "again")
    assert files(small) != files(tmp_path / "other")


def test_it_is_a_voc_devkit(small):
    assert split_names(small) == {"train": "trainval", "test": "test"}
    tags, test = open_tags(small, "trainval"), open_tags(small, "test")
    assert tags.classes == CLASSES == tuple(sorted(CLASSES)) and len(CLASSES) >= 6
    assert verify_images(tags, progress=False).images == 24 and len(test.records) == 12
    assert not {r.image_id for r in tags.records} & {r.image_id for r in test.records}
    parts = [open_tags(small, split).records for split in ("train", "val")]
    assert sorted(r.image_id for part in parts for r in part) == [r.image_id for r in tags.records]
    for record in tags.records:
        assert max(record.width, record.height) <= 192
        assert Image.open(record.path).format == "JPEG"


def test_per_class_lists_say_what_the_xml_says(small):
    root = small / "VOC2007"
    for label, split in itertools.product(CLASSES, ("trainval", "test")):
        path = root / "ImageSets" / "Main" / f"{label}_{split}.txt"
        for line in path.read_text().splitlines():
            name, flag = line.split()
            tree = ElementTree.parse(root / "Annotations" / f"{name}.xml")
            hard = [
                o.findtext("difficult") == "1"
                for o in tree.iter("object")
                if o.findtext("name") == label
            ]
            assert int(flag) == (-1 if not hard else 0 if all(hard) else 1)


def test_masks_fit_their_boxes(small):
    for split in ("trainval", "test"):
        for record in open_truth(small, split).records:
            path = small / "VOC2007" / "SegmentationObject" / f"{record.path.stem}.png"
            image = Image.open(path)
            pixels = np.array(image)
            assert image.mode == "P" and set(np.unique(pixels)) - {255} == set(
                range(len(record.boxes) + 1)
            )
            for box, mask in zip(record.boxes, record.masks, strict=True):
                x, y, width, height = coco_mask.toBbox(mask)
                assert box.tolist() == [x, y, x + width, y + height]
            classes = np.array(Image.open(path.parents[1] / "SegmentationClass" / path.name))
            for k, label in enumerate(record.labels, 1):
                assert (classes[pixels == k] == label + 1).all()
            ring = cv2.dilate((pixels % 255 > 0).astype(np.uint8), np.ones((3, 3))) > 0
            np.testing.assert_array_equal(pixels == 255, ring & (pixels % 255 == 0))


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weaksam_jax.data.mini_set.write._write_scene", fail)
    with pytest.raises(OSError):
        write_mini(tmp_path, 0, 4, 4, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_every_class_can_be_learnt(scenes):
    tags = Counter()
    for scene in scenes:
        tags.update({thing.name for thing in scene.objects if not thing.difficult})
    assert set(tags) == set(CLASSES) and min(tags.values()) >= 40


def test_it_is_hard_in_the_ways_of_weak_supervision(scenes):
    names = [[thing.name for thing in scene.objects] for scene in scenes]
    several = sum(any(n > 1 for n in Counter(row).values()) for row in names) / TRAIN
    together = sum(len(set(row)) > 1 for row in names) / TRAIN
    negatives = sum(not row for row in names) / TRAIN
    assert several > 0.4 and together > 0.3 and 0 < negatives < 0.1
    assert max(max(Counter(row).values(), default=0) for row in names) >= 4
    things = [thing for scene in scenes for thing in scene.objects]
    hard = sum(thing.difficult for thing in things) / len(things)
    cut = sum(thing.truncated for thing in things) / len(things)
    assert 0.005 < hard < 0.1 and 0.05 < cut < 0.35
    whole = [t for t in things if not (t.difficult or t.truncated)]
    sides = [max(t.box[2] - t.box[0], t.box[3] - t.box[1]) + 1 for t in whole]
    assert np.percentile(sides, 99) / np.percentile(sides, 1) >= 3.5
    assert max(sides) / min(sides) >= 4


def test_pairs_of_classes_often_occur_together(scenes):
    single, both = Counter(), Counter()
    for scene in scenes:
        present = sorted({thing.name for thing in scene.objects})
        single.update(present)
        both.update(itertools.combinations(present, 2))
    (one, two), count = both.most_common(1)[0]
    lift = count * TRAIN / (single[one] * single[two])
    assert lift > 1.5  # half as often again as by chance


def test_neighbours_of_one_class_touch(scenes):
    touching = 0
    for scene in scenes:
        for a, b in itertools.combinations(range(len(scene.objects)), 2):
            if scene.objects[a].name != scene.objects[b].name:
                continue
            grown = cv2.dilate((scene.instances == a + 1).astype(np.uint8), np.ones((3, 3)))
            touching += bool((grown.astype(bool) & (scene.instances == b + 1)).any())
    assert touching > TRAIN / 10


def test_difficult_means_small_or_hidden(scenes):
    for scene in scenes:
        for k, thing in enumerate(scene.objects, 1):
            side = min(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) + 1
            assert thing.difficult or side >= 20
            assert (scene.instances == k).any()


@pytest.mark.parametrize("name", CLASSES)
def test_one_part_is_telling(name):
    """A tenth to three tenths of the object, and far from filling its box."""
    for seed in range(10):
        pose = Pose(200, 200, 100, 0, False)
        parts = ARTISTS[name](np.random.default_rng(seed))
        owner = np.zeros((400, 400), np.uint8)
        for part in parts:
            owner[silhouette(owner.shape, [part], pose, 0) > 0] = 2 if part.telling else 1
        assert 0.1 < (owner == 2).sum() / (owner > 0).sum() < 0.3
        rows, columns = np.nonzero(owner == 2)
        part_box = np.array([columns.min(), rows.min(), columns.max(), rows.max()], np.float32)
        rows, columns = np.nonzero(owner)
        whole = np.array([columns.min(), rows.min(), columns.max(), rows.max()], np.float32)
        assert containment(part_box[None], whole[None])[0, 0] > 0.99
        assert area(part_box) / area(whole) < 0.5  # taking the part for the whole fails at IoU .5

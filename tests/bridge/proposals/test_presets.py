"""Named settings, the label policy, and the outputs of published COCO networks."""

import json
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from small_sam import blocky_image

from bridge.clues.interface import minmax
from bridge.clues.lite_cam import LiteCam
from bridge.clues.weaktr import WeakTr, WeakTrClues, WeakTrConfig, at_depth, load_weaktr
from bridge.export import main
from bridge.proposals.export import ExportConfig
from bridge.proposals.presets import PRESETS, PresetName, clue_network
from bridge.weights.checkpoints import save_tensors
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.store import proposal_path, read_manifest
from weaksam_jax.files import read_arrays

# The ids that no category of COCO has.
UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = [one for one in range(1, 91) if one not in UNUSED]


def weaktr_file(path, classes, seed=0, fusion="v3", logit_scale=30.0):
    """A small WeakTr with random weights; larger class tokens spread the logits."""
    torch.manual_seed(seed)
    config = WeakTrConfig(classes, dim=32, heads=2, depth=3, patch=8, grid=4, fusion=fusion)
    model = WeakTr(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    model.cls_token.data.mul_(logit_scale)
    save_tensors(path, model.state_dict(), {"heads": "2"})
    return path


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A COCO folder of 80 categories with COCO's ids; image 5 shows ids 13 and 90."""
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (5, 6)],
        "categories": [{"id": one, "name": f"class {one}"} for one in COCO_IDS],
        "annotations": [
            {"id": k, "image_id": 5, "category_id": one, "bbox": [1, 1, 9, 9], "iscrowd": 0}
            for k, one in enumerate((90, 13))
        ],
    }
    for image in content["images"]:
        Image.fromarray(blocky_image(image["id"], 48, 64)).save(
            root / "images" / image["file_name"]
        )
    for split in ("train2014", "val2014"):
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))
    return root


# Presets


@pytest.mark.parametrize("name", get_args(PresetName))
def test_every_preset_can_be_used(name):
    config = ExportConfig.preset(name, labels="predicted")
    assert config.prompts == PRESETS[name].prompts and config.labels == "predicted"
    for kernel in ("kernel_coarse", "kernel_fine", "kernel_cross"):
        assert getattr(config.prompts, kernel) % 2 == 1  # a window with a centre pixel


@pytest.mark.parametrize(
    ("name", "kernels", "divisor", "layers", "fusion"),
    [
        ("voc07-paper", (129, 129, 129), 5, range(5, 13), "auto"),
        ("voc12-paper", (129, 129, 129), 5, range(5, 13), "auto"),
        ("coco14-paper", (129, 129, 129), 5, range(5, 13), "auto"),
        ("voc07-official", (17, 17, 129), None, (9, 10), "uniform"),
        ("voc12-official", (17, 17, 129), 5, (9, 10), "uniform"),
        ("coco14-official", (17, 17, 129), 5, range(5, 13), "uniform"),
    ],
)
def test_presets_of_data_sets(name, kernels, divisor, layers, fusion):
    """The table of docs/provenance/proposals.md, section 4, row by row."""
    preset = PRESETS[name]
    prompts, proposals = preset.prompts, preset.proposals
    assert (prompts.kernel_coarse, prompts.kernel_fine, prompts.kernel_cross) == kernels
    assert (prompts.threshold, prompts.max_peaks, prompts.grid_side) == (0.9, 25, 32)
    assert prompts.cross_divisor == divisor and not prompts.relative_kernel
    use = preset.clue_use
    assert use.cross_layers == tuple(one - 1 for one in layers) and use.fusion == fusion
    assert use.tta_scales == (1.0, 0.8, 1.2)
    assert (proposals.t_iou, proposals.t_stab, proposals.grid_nms) == (0.3, 0.3, 0.3)
    assert proposals.peak_tokens == (1, 2) and proposals.cross_nms == 0.9
    assert (proposals.dedupe_nms, proposals.max_boxes, proposals.min_side) == (None, None, 0)


def test_layers_of_other_depths():
    assert at_depth((8, 9), 12) == (8, 9)
    assert at_depth(range(4, 12), 12) == tuple(range(4, 12))
    assert at_depth(range(12), 3) == (0, 1, 2)


def test_a_preset_sets_up_weaktr(coco, tmp_path):
    path, split = weaktr_file(tmp_path / "w.safetensors", 80), open_tags(coco, "train")
    paper = clue_network(path, "voc07-paper", split)
    assert paper.tta_scales == (1.0, 0.8, 1.2) and paper.cross_layers == (1, 2)
    assert paper.model.config.fusion == "v3"
    assert clue_network(path, "voc07-official", split).model.config.fusion == "uniform"
    assert clue_network(path, "mini", split).model.config.fusion == "v3"


# COCO's 90 outputs


def test_unused_outputs_are_never_predicted(coco, tmp_path):
    """Output 11 is id 12, which no object has; alone above the limit it gives way to the best."""
    path, split = weaktr_file(tmp_path / "w.safetensors", 90), open_tags(coco, "val")
    network = clue_network(path, "coco14-paper", split)
    tokens = network.model.cls_token.data
    image = blocky_image(0, 32, 40)
    tokens[:, 11] += 50
    found = network(image)
    assert 12 not in {split.category_ids[one] for one in found.class_ids}
    assert found.class_logits.shape == (80,)
    tokens[:, :11] -= 50
    tokens[:, 12:] -= 50
    found = network(image)
    assert found.class_ids.tolist() == [int(found.class_logits.argmax())]


def test_export_of_coco_with_ninety_outputs(coco, tmp_path):
    """The files speak of the data set's 80 classes, with the logits of the right outputs."""
    path = weaktr_file(tmp_path / "w.safetensors", 90)
    flags = ["--data", str(coco), "--out", str(tmp_path / "out"), "--clues", str(path)]
    flags += ["--proposals", "selective_search", "--preset", "coco14-official"]
    assert entry_point(main, [*flags, "--split", "train"]) == 0
    assert entry_point(main, [*flags, "--split", "val"]) == 0
    network = WeakTrClues(load_weaktr(path, "uniform"), cross_layers=(1, 2))
    split = open_tags(coco, "train")
    for record in split.records:
        image = np.asarray(Image.open(record.path))
        expected = network(image, tuple(split.category_ids[one] - 1 for one in record.tags))
        stored, _ = read_arrays(proposal_path(tmp_path / "out/clues", "train2014", record.image_id))
        assert stored["class_ids"].tolist() == list(record.tags)
        wanted = expected.class_logits[np.asarray(COCO_IDS) - 1]
        np.testing.assert_allclose(stored["class_logits"], wanted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(stored["fine"], expected.fine, atol=2e-3)
        assert np.isfinite(stored["coarse"]).all() and set(stored["points"][:, 3]) <= {-1, 11, 79}
        predicted, _ = read_arrays(
            proposal_path(tmp_path / "out/clues", "val2014", record.image_id)
        )
        above = [k for k, one in enumerate(COCO_IDS) if expected.class_logits[one - 1] > -0.5]
        assert predicted["class_ids"].tolist() == above and above


# Whose labels


@pytest.fixture
def weights(tmp_path):
    """A Lite0 head of 80 classes on tiny inputs."""
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.normal(0, 1, (80, 1280)).astype(np.float32))
    recipe = {"long_side": 64, "tta_scales": [1.0], "tta_flip": False}
    save_tensors(
        tmp_path / "head.safetensors",
        {"weight": weight, "bias": torch.zeros(80)},
        {"settings": json.dumps(recipe)},
    )
    return tmp_path / "head.safetensors"


def test_tags_of_a_test_split_are_used_only_by_the_option_that_says_so(
    coco, weights, tmp_path, capsys
):
    flags = ["--data", str(coco), "--clues", str(weights), "--proposals", "selective_search"]
    flags += ["--preset", "light"]
    found = {}
    for split, labels in (
        ("train", "auto"),
        ("val", "auto"),
        ("val", "tags_at_test_time"),
        ("val", "tags"),
    ):
        out = tmp_path / f"{split}-{labels}"
        status = entry_point(
            main, [*flags, "--split", split, "--out", str(out), "--labels", labels]
        )
        assert status == (2 if labels == "tags" else 0)
        if status == 0:
            full = f"{split}2014"
            ids, _ = read_arrays(proposal_path(out / "clues", full, 5))
            manifest = read_manifest(out, full)
            found[split, labels] = manifest["labels"], ids["class_ids"].tolist()
            assert ("negatives" in manifest) == (manifest["labels"] != "predicted")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --labels: tags: val is no training split")
    assert found["train", "auto"] == ("tags", [11, 79])
    assert found["val", "tags_at_test_time"] == ("tags_at_test_time", [11, 79])
    policy, predicted = found["val", "auto"]
    assert policy == "predicted" and predicted != [11, 79]
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "tags_at_test_time takes the tags of a test split" in said


def test_classes_of_difficult_objects_are_asked_for_as_in_the_official_code(tmp_path):
    """And VOC2012's test split, whose annotations nobody has, is asked for predictions."""
    root = tmp_path / "VOC2012"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for name, split in (("2008_000001", "trainval"), ("2008_000002", "test")):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(name)
        Image.fromarray(blocky_image(1, 48, 64)).save(root / "JPEGImages" / f"{name}.jpg")
    objects = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult></object>"
        for name, hard in (("cat", 0), ("dog", 1))
    )
    path = root / "Annotations" / "2008_000001.xml"
    path.write_text(f"<annotation>{objects}</annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("2008_000001")
    (root / "ImageSets" / "Main" / "val.txt").write_text("2008_000001")
    weights = weaktr_file(tmp_path / "w.safetensors", 20)
    flags = ["--data", str(root), "--clues", str(weights), "--proposals", "selective_search"]
    for preset, split, image, ids in (
        ("voc12-paper", "trainval", 2008000001, [7, 11]),
        ("voc12-official", "trainval", 2008000001, [7, 11]),
        ("light", "trainval", 2008000001, [7]),
        ("voc12-paper", "test", 2008000002, None),
    ):
        out = tmp_path / f"{preset}-{split}"
        more = ["--preset", preset, "--split", split, "--out", str(out)]
        assert entry_point(main, [*flags, *more]) == 0
        stored, metadata = read_arrays(proposal_path(out / "clues", split, image))
        assert metadata["labels"] == ("predicted" if ids is None else "tags")
        assert len(stored["class_ids"]) if ids is None else stored["class_ids"].tolist() == ids


def test_absent_classes_have_no_maps_and_nothing_is_nan(coco, weights, tmp_path):
    """The official code keeps a map of every class; of absent ones 0/0 in half floats."""
    network = clue_network(weights, "light", open_tags(coco, "train"))
    assert isinstance(network, LiteCam)
    for image in (np.zeros((32, 40, 3), np.uint8), blocky_image(0, 32, 40)):
        for ids in ((), (3,), (3, 79)):
            clues = network(image, ids)
            assert clues.coarse.shape == clues.fine.shape == (len(ids), 32, 40)
            assert np.isfinite(clues.coarse).all() and np.isfinite(clues.fine).all()
    np.testing.assert_array_equal(minmax(np.full((1, 3, 3), 1e-8, np.float16)), 0)


@pytest.mark.parametrize("kind", ["other classes", "no clue network", "truncated", "missing"])
def test_wrong_weights_end_in_one_line(coco, tmp_path, capsys, kind):
    path = weaktr_file(tmp_path / "w.safetensors", 20)
    if kind == "no clue network":
        save_tensors(path, {"thing": torch.zeros(3)}, {})
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "missing":
        path.unlink()
    flags = ["--data", str(coco), "--split", "train", "--out", str(tmp_path / "out")]
    capsys.readouterr()
    status = entry_point(main, [*flags, "--clues", str(path), "--proposals", "selective_search"])
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2 and line.startswith(f"error: {path}: ")
    if kind == "other classes":
        assert "has 20 classes, the data set has 80" in line
    assert not (tmp_path / "out").exists()

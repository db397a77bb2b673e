"""`python -m experiments.detect` on the tiny detector: files, figures and refusals."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_mil import TINY

from experiments import detect
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_truth
from weaksam_jax.data.scales import padded_sizes
from weaksam_jax.detectors.mil import recipes
from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.detectors.mil.detect import detect_wsod
from weaksam_jax.engine.checkpoint import save_params
from weaksam_jax.evaluate import corloc, voc_ap


def tiny() -> WsodSettings:
    return TINY


@pytest.fixture
def flags(world, trained, tmp_path, monkeypatch):
    """The flags of a detection on the test split; the preset "tiny" is among the others."""
    monkeypatch.setitem(recipes.PRESETS, "tiny", tiny)
    save_params(tmp_path / "weights.safetensors", trained)
    data = world[0].records[0].path.parents[1]
    paths = {"weights": tmp_path / "weights.safetensors", "data": data, "proposals": world[2]}
    named = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    return [*named, "--preset", "tiny", "--out", str(tmp_path / "out")]


def test_results_files_and_figures(world, trained, flags, tmp_path, capsys):
    data, test = world[0].records[0].path.parents[1], world[1]
    comp4 = tmp_path / "comp4"
    more = ["--settings.nms", "0.4", "--voc-files", str(comp4)]
    assert entry_point(detect.main, [*flags, *more]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    settings = dataclasses.replace(TINY, nms=0.4)
    assert found == detect_wsod(trained, test, world[2], settings, tmp_path)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    truth = open_truth(data, "test")
    assert metrics["voc12"] == voc_ap(found, truth, rule="12")
    assert metrics["corloc_official"] == corloc(found, truth, convention="official")
    assert f"{metrics['voc07']['ap50']:6.2f}" in printed and "CorLoc, official" in printed
    assert all(f"  {name}" in printed for name in metrics["corloc"]["per_class"])
    rows = [path.read_text().splitlines() for path in comp4.glob("comp4_det_test_*.txt")]
    assert len(rows) == len(test.classes) and sum(map(len, rows)) == len(found)
    told = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert told["split"] == "test" and told["settings"]["nms"] == 0.4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "detections.json",
        "metrics.json",
        "settings.json",
    ]


def test_an_unannotated_split_has_files_and_no_figures(world, flags, tmp_path, capsys):
    source, root = world[0].records[0].path.parents[1], tmp_path / "VOC2007"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "JPEGImages").symlink_to(source / "JPEGImages")
    names = (source / "ImageSets" / "Main" / "test.txt").read_text()
    (root / "ImageSets" / "Main" / "test.txt").write_text(names)
    (root / "classes.txt").write_text("\n".join(world[1].classes))
    flags[flags.index("--data") + 1] = str(root)
    assert entry_point(detect.main, [*flags, "--split", "test", "--voc-files", str(tmp_path)]) == 0
    assert "no boxes of this split" in capsys.readouterr().out
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert len(list(tmp_path.glob("comp4_det_test_*.txt"))) == len(world[1].classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--settings.width", "32"], "these settings need [32, 8]"),
        (["--preset", "other"], "error: --preset: other is no preset; choose from mini, light,"),
        (["--weights", "gone.safetensors"], "gone.safetensors: does not exist"),
        (["--proposals", "nowhere"], "does not exist"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(flags, tmp_path, capsys, change, message):
    for name, value in zip(change[::2], change[1::2], strict=True):
        if name in flags:
            flags[flags.index(name) + 1] = value
        else:
            flags += [name, value]
    assert entry_point(detect.main, flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    if "width" in change[0]:
        assert errors[0].startswith(f"error: {tmp_path / 'weights.safetensors'}: cls/kernel is ")
    assert not (tmp_path / "out" / "detections.json").exists()


def test_a_preset_and_changes_of_it(flags, monkeypatch):
    assert {"light", "mini", "voc07_mist", "coco14_oicr"} <= recipes.PRESETS.keys()
    sides = tuple(padded_sizes(side, 2000) for side in (800, 480))
    views = dataclasses.replace(TINY, test_scales=sides)
    monkeypatch.setitem(recipes.PRESETS, "views", lambda: views)
    flags[flags.index("tiny")] = "views"
    options = detect.parse([*flags, "--settings.test-batch", "3", "--settings.every-class"])
    assert options.settings == dataclasses.replace(views, test_batch=3)
    assert np.shape(options.settings.test_scales) == (2, 6, 2)

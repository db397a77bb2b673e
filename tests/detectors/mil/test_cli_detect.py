"""`python -m experiments.detect` on the tiny MIL detector: files, figures and refusals."""

import json

import processes
import pytest
from configs import vary
from tiny_mil import TINY, detect

from experiments import detect as command
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_truth
from weaksam_jax.detectors import save_detector
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.evaluate import corloc, voc_ap


@pytest.fixture
def flags(drawn, trained, tmp_path):
    """The flags of a detection on the test split."""
    train, _, proposals = drawn
    path = tmp_path / "weights.safetensors"
    save_detector(path, MilDetector(TINY, train.classes), trained)
    data = train.records[0].path.parents[1]
    paths = {"weights": path, "data": data, "proposals": proposals, "out": tmp_path / "out"}
    return [text for name, path in paths.items() for text in (f"--{name}", str(path))]


def test_results_files_and_figures(drawn, trained, flags, tmp_path, capsys):
    train, test, proposals = drawn
    data, comp4 = train.records[0].path.parents[1], tmp_path / "comp4"
    more = ["--test.nms", "0.4", "--voc-files", str(comp4)]
    assert entry_point(command.main, [*flags, *more]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    changed = vary(TINY, test={"nms": 0.4})
    assert found == detect(trained, test, proposals, changed, tmp_path)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    truth = open_truth(data, "test")
    assert metrics["voc12"] == voc_ap(found, truth, rule="12")
    assert metrics["corloc_official"] == corloc(found, truth, convention="official")
    assert f"{metrics['voc07']['ap50']:6.2f}" in printed and "CorLoc, official" in printed
    assert "has seen: unknown (the file does not say)" in printed
    assert all(f"  {name}" in printed for name in metrics["corloc"]["per_class"])
    rows = [path.read_text().splitlines() for path in comp4.glob("comp4_det_test_*.txt")]
    assert len(rows) == len(test.classes) and sum(map(len, rows)) == len(found)
    told = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert told["split"] == "test" and told["test"]["nms"] == told["config"]["test"]["nms"] == 0.4
    assert told["config"]["model"]["fc_width"] == TINY.model.fc_width
    assert told["supervision"] == metrics["supervision"]
    assert metrics["supervision"]["supervision"] == "unknown"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".weaksam.lock",
        "detections.json",
        "metrics.json",
        "settings.json",
    ]


@pytest.mark.slow
def test_two_processes_write_one_result(flags, tmp_path):
    """Started as those of a training: the first alone locks, writes and prints."""
    assert entry_point(command.main, flags) == 0
    alone, together = tmp_path / "out", tmp_path / "together"
    own = [str(together) if one == str(alone) else one for one in flags]
    said = processes.run(["-m", "experiments.detect", *own], count=2, timeout=400)
    assert "detections on" in said[0] and said[1] == ""
    assert sorted(p.name for p in together.iterdir()) == sorted(p.name for p in alone.iterdir())
    both = [(folder / "detections.json").read_bytes() for folder in (alone, together)]
    assert both[0] == both[1]


def test_an_unannotated_split_has_files_and_no_figures(drawn, flags, tmp_path, capsys):
    source, root = drawn[0].records[0].path.parents[1], tmp_path / "VOC2007"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "JPEGImages").symlink_to(source / "JPEGImages")
    names = (source / "ImageSets" / "Main" / "test.txt").read_text()
    (root / "ImageSets" / "Main" / "test.txt").write_text(names)
    (root / "classes.txt").write_text("\n".join(drawn[1].classes))
    flags[flags.index("--data") + 1] = str(root)
    more = ["--split", "test", "--voc-files", str(tmp_path / "server")]
    assert entry_point(command.main, [*flags, *more]) == 0
    assert "no boxes of this split" in capsys.readouterr().out
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert len(list((tmp_path / "server").glob("comp4_det_test_*.txt"))) == len(drawn[1].classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--test.nmss", "1"], "--test.nmss: is no flag of this command; did you mean --test.nms?"),
        (["--weights", "gone.safetensors"], "gone.safetensors: does not exist"),
        (["--proposals", "nowhere"], "does not exist"),
        (["--proposals", None], "--proposals: is missing, which the detector (mil) needs"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(flags, tmp_path, capsys, change, message):
    name, value = change
    if name in flags:
        place = flags.index(name)
        flags[place : place + 2] = [name, value] if value else []
    else:
        flags += change
    assert entry_point(command.main, flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out" / "detections.json").exists()


def test_the_defaults_of_test_settings_are_those_of_the_file(flags):
    options = command.parse_options([*flags, "--test.batch-size", "3"])
    assert options.test == vary(TINY, test={"batch_size": 3}).test

"""Bad input ends in exit status 2 and one line that names the file; nothing is half-written."""

import re
import shutil
from pathlib import Path

import pytest
from tiny_pipeline import STAGES, flags, start

from experiments.custom import main
from weaksam_jax.cli import entry_point
from weaksam_jax.locks import LOCK


def fault_of(said: str) -> str:
    """The one error line, which must be the last of what was said on stderr."""
    assert "Traceback" not in said
    lines = said.split("\n")
    assert lines[-1] == "" and lines[-2].startswith("error: "), said[-3000:]
    assert said.count("error:") == 1
    return lines[-2]


def fails(capsys, data: Path | str, out: Path, *more: str) -> str:
    """Runs the pipeline in this process; returns the error line."""
    capsys.readouterr()
    assert entry_point(main, flags(data, out, *more)) == 2
    assert not list(out.rglob("*.tmp"))
    return fault_of(capsys.readouterr().err)


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """A copy of the tiny data set, to be spoilt."""
    return shutil.copytree(tiny_data, tmp_path / "VOC2007")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_box(data: Path, corner: str, value: int) -> None:
    path = data / "Annotations" / "000003.xml"
    text = re.sub(f"<{corner}>.*?</{corner}>", f"<{corner}>{value}</{corner}>", path.read_text())
    path.write_text(text)


SPOIL = {
    "JPEGImages/000003.jpg: image does not exist": lambda data: (
        data / "JPEGImages" / "000003.jpg"
    ).unlink(),
    "JPEGImages/000003.jpg: image cannot be read": lambda data: truncate(
        data / "JPEGImages" / "000003.jpg"
    ),
    "JPEGImages/000009.jpg: image cannot be read": lambda data: truncate(
        data / "JPEGImages" / "000009.jpg"
    ),
    "Annotations/000003.xml: box .* is inverted": lambda data: change_box(data, "xmin", 1000),
    "Annotations/000003.xml: box .* lies outside": lambda data: change_box(data, "xmax", 1000),
    r"Annotations/0000\d\d.xml: class '.*' is not in the class list": lambda data: (
        data / "classes.txt"
    ).write_text("unheard of"),
    "Main/trainval.txt: image 000003 is listed twice": lambda data: (
        data / "ImageSets" / "Main" / "trainval.txt"
    ).write_text("000003\n000001\n000003\n"),
    "Main/trainval.txt: split trainval is empty": lambda data: (
        data / "ImageSets" / "Main" / "trainval.txt"
    ).write_text("\n"),
}


@pytest.mark.parametrize("message", SPOIL)
def test_spoilt_data_set(data, tmp_path, capsys, message):
    SPOIL[message](data)
    out = tmp_path / "run"
    line = fails(capsys, data, out)
    assert re.match(f"error: {re.escape(str(data))}/(ImageSets/)?{message}", line), line
    assert not (out / "stages" / "data.json").exists() and not (out / "clues").exists()


def test_tag_that_is_no_class(tiny_data, tmp_path, capsys):
    data = tmp_path / "photos"
    shutil.copytree(tiny_data / "JPEGImages", data / "images")
    (data / "classes.txt").write_text("cat\ndog\n")
    (data / "tags.csv").write_text("file,tags,split\n000001.jpg,dgo,train\n000002.jpg,cat,test\n")
    line = fails(capsys, data, tmp_path / "run")
    assert line.startswith(f"error: {data}/tags.csv: line 2: tag 'dgo' is not in the class list")


@pytest.mark.parametrize("exists", [True, False])
def test_data_that_is_no_data_set(tmp_path, capsys, exists):
    data = tmp_path / "holiday"
    if exists:
        data.mkdir()
        (data / "notes.txt").touch()
    line = fails(capsys, data, tmp_path / "run")
    assert line.startswith(f"error: {data}: is no {'data set' if exists else 'folder'}; give ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--stages", "data,mask"], "--stages: mask is no stage; did you mean masks?"),
        (["--wsod.model.backbone", "vgg16"], "stage wsod: has no weights for vgg16; set"),
        (["--retrain.optim.init", "no/r50.safetensors"], "no/r50.safetensors: does not exist"),
        (["--proposals", "nowhere"], "nowhere/trainval/manifest.json: does not exist"),
    ],
)
def test_arguments(tiny_data, tmp_path, capsys, more, message):
    assert fails(capsys, tiny_data, tmp_path / "run", *more).startswith(f"error: {message}")


# Files of a run that were damaged


@pytest.fixture
def run(undisturbed, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(undisturbed.out, tmp_path / "run")


def forget(out: Path, first: str) -> None:
    """Stage `first` and those behind it become begun and interrupted."""
    for stage in STAGES[STAGES.index(first) :]:
        (out / "stages" / f"{stage}.json").unlink()


@pytest.mark.slow
def test_truncated_proposals_are_named_and_made_again(run, undisturbed, capsys):
    name = "proposals/trainval/03/3.safetensors"
    forget(run, "wsod")
    truncate(run / name)
    line = fails(capsys, undisturbed.data, run)
    assert line.startswith(f"error: {run / name}: is no whole safetensors file")
    assert not (run / "stages" / "wsod.json").exists()
    chosen = ["--stages", "data,clues,proposals"]
    assert entry_point(main, flags(undisturbed.data, run, *chosen)) == 0
    assert (run / name).read_bytes() == (undisturbed.out / name).read_bytes()


@pytest.mark.slow
def test_truncated_weights_are_named(run, undisturbed, capsys):
    forget(run, "retrain")
    truncate(run / "wsod" / "params.safetensors")
    line = fails(capsys, undisturbed.data, run)
    assert line.startswith(f"error: {run}/wsod/params.safetensors: is no whole safetensors file")
    assert not (run / "stages" / "retrain.json").exists()


@pytest.mark.slow
def test_truncated_checkpoint_of_the_clue_network_is_named(run, undisturbed, capsys):
    forget(run, "clues")
    (run / "clues" / "weaktr.safetensors").rename(run / "clues" / "checkpoint.safetensors")
    truncate(run / "clues" / "checkpoint.safetensors")
    line = fails(capsys, undisturbed.data, run)
    assert line.startswith(f"error: {run}/clues/checkpoint.safetensors: is no whole")
    assert not (run / "clues" / "weaktr.safetensors").exists()


@pytest.mark.slow
def test_truncated_checkpoint_of_the_detector_is_named(run, undisturbed, capsys):
    forget(run, "wsod")
    latest = run / "wsod" / "mil" / "checkpoints" / "4"
    files = [path for path in latest.rglob("*") if path.is_file()]
    truncate(max(files, key=lambda path: path.stat().st_size))
    line = fails(capsys, undisturbed.data, run)
    assert line.startswith(f"error: {latest}: is damaged or of other settings")
    assert not (run / "stages" / "wsod.json").exists()


# A full disk


def test_disk_full_while_the_clue_network_is_saved(tiny_data, small_disk, capsys):
    out = small_disk(128) / "run"
    line = fails(capsys, tiny_data, out)
    assert line.startswith(f"error: disk full while writing {out}/clues/checkpoint.safetensors; ")
    assert (out / "stages" / "data.json").exists()
    assert not (out / "stages" / "clues.json").exists()


@pytest.mark.slow
def test_disk_full_while_a_checkpoint_is_saved(undisturbed, small_disk):
    needed = [undisturbed.out / name for name in ("stages", "clues", "proposals")]
    used = sum(path.stat().st_size + 4096 for top in needed for path in top.rglob("*"))
    out = small_disk(used // 1024 + 400) / "run"
    for top in needed:
        shutil.copytree(top, out / top.name)
    shutil.copy(undisturbed.out / LOCK, out)
    forget(out, "wsod")
    process = start(undisturbed.data, out)
    _, said = process.communicate()
    assert process.returncode == 2, said[-3000:]
    assert fault_of(said).startswith("error: disk full while writing")
    assert not (out / "stages" / "wsod.json").exists() and not list(out.rglob("*.tmp"))

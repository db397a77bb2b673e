"""A run folder of a stranger: any content ends in one line, and no file outside of it is read."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from config_places import PLACES, STAGES, nested
from configs import vary
from PIL import Image
from tiny_pipeline import options as tiny_options
from tiny_pipeline import write_run

import weaksam_jax
from bridge import plugins
from experiments import compare, predict
from experiments.pipeline.config import mini
from experiments.pipeline.run import open_run
from weaksam_jax.cli import entry_point
from weaksam_jax.detectors import load_detector, metadata_of, save_detector
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.engine.weights import flatten
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json, write_arrays, write_json
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.settings import from_plain

DEEP = 900 * "[" + 900 * "]"
# As JSON text, since some of it no `json.dumps` writes.
WRONG = [
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    "1e999",
    "NaN",
    str(10**400),
    '""',
    '"x"',
    '"/etc/passwd"',
]
WRONG += ['"../../x"', '"a\\u0000b"', '"\\ud800"', "[]", "[[[]]]", "{}", '{"a": {"b": 1}}', DEEP]
TINY = vary(
    mini().retrain,
    model={"channels": 8, "fc_width": 8},
    test={"tta_scales": (((64, 64),),), "batch_size": 2, "tag_power": 1.0},
)


def outcome(work):
    """None, or the one line of `BadInput`; any other exception is a fault."""
    try:
        work()
    except BadInput as error:
        (line,) = str(error).splitlines()
        assert error.hint and len(line) < 1000
        return line
    return None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with all that predict reads, of an untrained detector; not to be changed."""
    run = write_run(tmp_path_factory.mktemp("runs") / "run", "mini", retrain=TINY)
    folder, detector = RunFolder(run), FasterRcnn(TINY, ("cat", "dog"))
    params = jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), detector.shapes())
    save_detector(folder.weights("retrain"), detector, params)
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    write_json(folder.pseudo_boxes(), {"categories": categories})
    write_json(run / "stages" / "retrain.json", {})
    return run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:12])
def test_every_setting_with_any_value(text):
    """In the config of each stage: read, or refused in one line that names it."""
    value = json.loads(text)
    for stage, place, _ in PLACES:
        config = STAGES[stage]
        for depth in range(1, len(place) + 1):
            content = nested(place[:depth], value)
            line = outcome(partial(from_plain, type(config), content, "s.json", config, stage))
            assert line is None or line.startswith(f"s.json: {stage}.{place[0]}")


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:12])
def test_settings_json_with_any_value_in_its_fields(run, text):
    path = RunFolder(run).settings
    whole = read_json(path)
    names = [(name,) for name in whole] + [("settings", name) for name in whole["settings"]]
    for names_of_one in [(), *names]:
        path.write_text(planted_text(whole, names_of_one, text))
        for work in (
            lambda: open_run(run),
            lambda: plugins.tags(RunFolder(run), ("cat", "dog")),
        ):
            line = outcome(work)
            assert line is None or str(run) in line, line


def planted_text(whole, names, text):
    """The settings as JSON with that text in one place."""
    if not names:
        return text
    mark = "planted here"
    content = json.loads(json.dumps(whole))
    inner = content
    for name in names[:-1]:
        inner = inner[name]
    inner[names[-1]] = mark
    return json.dumps(content).replace(json.dumps(mark), text)


def with_setting(run, name, value):
    path = RunFolder(run).settings
    content = read_json(path)
    content["settings"][name] = value
    write_json(path, content)


def test_weights_elsewhere_are_not_read_unless_they_are_named(run, tmp_path, capsys):
    secret = tmp_path / "secret.pth"
    secret.write_bytes(b"not to be read")
    link = run / "inside.pth"
    link.symlink_to(secret)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    for name in ("sam", "clues"):
        for value in (str(secret), str(run / ".." / "secret.pth"), str(link), "secret.pth"):
            copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
            with_setting(copy, "clues", str(copy / "missing.safetensors"))
            with_setting(copy, name, value)
            with pytest.raises(BadInput, match=rf"settings\.json: settings\.{name} names '"):
                weaksam_jax.load(copy, masks=name == "sam")
            flags = ["--run", str(copy), "--out", str(tmp_path / "out"), str(tmp_path / "a.png")]
            assert entry_point(predict.main, [*flags, *["--no-masks"] * (name == "clues")]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"give the file yourself: --{name} FILE" in line
            # Named by the user it is opened, and is no such network.
            assert entry_point(predict.main, [*flags, f"--{name}", str(secret)]) == 2
            assert f"error: {secret}: " in capsys.readouterr().err.splitlines()[-1]
            shutil.rmtree(copy)


def test_weights_inside_of_the_run_are_its_own(run):
    with_setting(run, "sam", str(run / "sam.pth"))
    (run / "sam.pth").write_bytes(b"no network")
    with pytest.raises(BadInput, match=rf"^{run}/sam\.pth: "):
        plugins.masks(RunFolder(run))
    with_setting(run, "sam", "sam_mini")
    assert callable(plugins.masks(RunFolder(run)))


CATEGORIES = ["null", "[]", "{}", '{"categories": 3}', '{"categories": {}}', '{"categories": [3]}']
CATEGORIES += ['{"categories": [{}]}', '{"categories": [{"name": "cat"}]}', DEEP, "x", ""]
CATEGORIES += [
    '{"categories": [{"name": "dog", "id": 2}, {"name": "cat", "id": ID}]}'.replace("ID", one)
    for one in ("null", "[]", '"a"', "1.5", "-1", str(2**70), "1e999")
]
CATEGORIES += [
    '{"categories": [{"name": NAME, "id": 1}]}'.replace("NAME", one)
    for one in ("3", "[]", "{}", "null")
]


def test_categories_of_any_kind_end_in_one_line(run, capsys):
    path = RunFolder(run).pseudo_boxes()
    flags = ["--run", str(run), "--out", str(run / "out"), "--no-masks", "x.png"]
    for text in CATEGORIES:
        path.write_text(text)
        assert outcome(lambda: plugins.tags(RunFolder(run), ("cat", "dog"))) is not None, text
    assert entry_point(predict.main, flags) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


METADATA = {
    "detector": ["", "mil2", "faster_rcnn\n", "["],
    "config": [*WRONG, "", "{", '{"model": 3}', '{"model": {"backbone": "resnet"}}'],
    "classes": [*WRONG, "", "[1]", '["a", 2]', "[[]]", '["a"]', '["a", "b", "c"]'],
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_weights_of_any_kind(run, name):
    path = RunFolder(run).weights("retrain")
    detector, params = load_detector(path)
    arrays = {key: np.asarray(one) for key, one in flatten(params).items()}
    for text in METADATA[name]:
        write_arrays(path, arrays, {**metadata_of(detector), name: text})
        line = outcome(lambda: load_detector(path))
        assert line is not None or (name == "config" and text == "{}"), (name, text)
        assert line is None or line.startswith(str(path))


def test_the_number_of_classes_of_any_kind(run):
    path = RunFolder(run).weights("retrain")
    detector, params = load_detector(path)
    arrays = {key: np.asarray(one) for key, one in flatten(params).items()}
    known = metadata_of(detector)
    del known["classes"]
    for text in ("", "x", "0", "-2", "2.0", "3", str(10**9), str(10**400), "null", "true", "[2]"):
        write_arrays(path, arrays, {**known, "num_classes": text})
        assert outcome(lambda: load_detector(path)) is not None, text
    write_arrays(path, arrays, {**known, "num_classes": "2"})
    assert load_detector(path)[0].classes == 2


@pytest.mark.parametrize("text", [*WRONG, "", "{"], ids=lambda text: text[:12])
def test_compare_reads_any_metrics(tmp_path, capsys, text):
    good = {"wsod": {"ap50": 50.0}, "seconds": {"data": 60.0}}
    for place in ((), ("wsod",), ("wsod", "ap50"), ("seconds",), ("seconds", "data")):
        (tmp_path / "metrics.json").write_text(planted_text(good, place, text))
        code = entry_point(compare.main, [str(tmp_path)])
        said = capsys.readouterr()
        if code == 0:
            assert "Minutes of all stages" in said.out and "nan" not in said.out
        else:
            assert code == 2 and len(said.err.splitlines()) == 1 and str(tmp_path) in said.err


CONFIG_PLACES = [(), ("preset",), ("data",), ("wsod",), ("retrain",), ("seed",), ("settings",)]
CONFIG_PLACES += [("settings", "pgt"), ("settings", "wsod"), ("settings", "pgt", "rule")]


@pytest.mark.parametrize("text", ["null", "1e999", '"x"', "[]", "{}", '{"a": {}}', DEEP])
def test_a_config_of_any_kind(run, tmp_path, text):
    whole, path = read_json(RunFolder(run).settings), tmp_path / "c.json"
    for place in CONFIG_PLACES:
        path.write_text(planted_text(whole, place, text))
        line = outcome(partial(tiny_options, "--data", "mini", "--config", str(path)))
        assert line is None or str(path) in line or line.startswith("--"), line

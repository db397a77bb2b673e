"""Sets as small and odd as can be: through the whole pipeline, or refused before any training."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import flags

from bridge.clues.lite_cam_training import fit_head
from experiments import custom
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.files import read_arrays, read_json

# (width, height, tags, split) of each image.
PAIR = [(96, 96, "cat", "train"), (80, 96, "dog", "train"), (96, 96, "cat", "test")]
ONE = [(96, 96, "cat", "train"), (96, 96, "cat", "test")]
NARROW = [(1, 64, "cat", "train"), (64, 1, "cat", "train"), (2000, 40, "dog", "train")]
NARROW += [(1, 1, "dog", "train"), (1, 64, "cat", "test"), (3, 2, "cat", "test")]
NARROW += [(1, 3000, "cat", "train"), (3000, 1, "cat", "test")]
NEGATIVES = [(96, 96, "", "train"), (96, 96, "cat", "train"), (96, 96, "", "test")]
CLASSES = [(96, 96, "a b c", "train"), (96, 96, "d", "train"), (96, 96, "e", "test")]
SINGLE = ("--weaktr.batch-size", "1")


def write(folder, rows):
    """A set of images of noise with tags.csv."""
    (folder / "images").mkdir(parents=True)
    rng, lines = np.random.default_rng(0), ["file,tags,split"]
    for number, (width, height, tags, split) in enumerate(rows):
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        lines.append(f"{number}.png,{tags},{split}")
    (folder / "tags.csv").write_text("\n".join(lines) + "\n")
    return folder


WHOLE = {
    "one image, one class": (ONE, SINGLE),
    "one proposal an image": (PAIR, (*SINGLE, "--export.proposals.max-boxes", "1")),
    "no proposal": (PAIR, (*SINGLE, "--export.proposals.min-side", "5000")),
    "all but one negative": (NEGATIVES, SINGLE),
    "more classes than images": (CLASSES, SINGLE),
    "batches beyond the set": (
        PAIR,
        (*SINGLE, "--wsod.optim.batch-size", "16", "--retrain.optim.batch-size", "16"),
    ),
    "a pixel wide, and very long": (NARROW, ()),
    "one image, lite_cam": (ONE, ("--clues", "lite_cam", "--lite.long-side", "64")),
    "a pixel wide, lite_cam": (NARROW, ("--clues", "lite_cam", "--lite.long-side", "64")),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WHOLE)
def test_the_whole_pipeline(tmp_path, case):
    rows, more = WHOLE[case]
    out = tmp_path / "out"
    assert entry_point(custom.main, flags(write(tmp_path / "d", rows), out, *more)) == 0
    metrics = read_json(out / "metrics.json")
    counts = [sum(row[3] == split for row in rows) for split in ("train", "test")]
    known = metrics["dataset"]
    assert [known["train_images"], known["test_images"]] == counts
    most = {"one proposal an image": 1, "no proposal": 0}.get(case, 16)
    assert metrics["proposals"]["per_image"] <= most
    for name in ("wsod", "retrain"):
        arrays, _ = read_arrays(out / name / "params.safetensors")
        assert all(np.isfinite(value).all() for value in arrays.values()), name
    for path in out.glob("clues/**/*.safetensors"):
        arrays, _ = read_arrays(path)
        assert all(np.isfinite(value).all() for value in arrays.values()), path
    pgt = read_json(out / "pgt" / "pgt.json")
    tagged = {
        record.image_id for record in open_tags(tmp_path / "d", "train").records if record.tags
    }
    assert {one["image_id"] for one in pgt["annotations"]} <= tagged
    assert (out / "report" / "index.html").exists()


TOO_SMALL = {
    "no tag": ([(96, 96, "", "train"), (96, 96, "cat", "test")], (), "has no tag on any of its 1"),
    "one image": (ONE, (), "has 1 images, fewer than a batch of 4; give more images, or a smaller"),
}


@pytest.mark.parametrize("case", TOO_SMALL)
def test_what_is_too_small_is_said_in_stage_data(tmp_path, capsys, case):
    rows, more, said = TOO_SMALL[case]
    out = tmp_path / "out"
    assert entry_point(custom.main, flags(write(tmp_path / "d", rows), out, *more)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert not (out / "clues").exists() and not (out / "stages" / "data.json").exists()


@pytest.mark.parametrize("images", [1, 2])
def test_a_head_of_features_that_are_all_alike_is_its_bias(images):
    """One image has no deviation; two equal ones have none either."""
    features = torch.ones(images, 8) * torch.arange(8)
    labels = torch.zeros(images, 3)
    labels[:, 1] = 1
    weight, bias = fit_head(features, labels, penalty=0.05)
    assert weight.shape == (3, 8) and torch.isfinite(weight).all() and torch.isfinite(bias).all()
    logits = features @ weight.T + bias
    assert (logits[:, 1] > 2).all() and (logits[:, [0, 2]] < -2).all()

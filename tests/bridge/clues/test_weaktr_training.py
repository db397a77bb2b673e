"""Training WeakTr on tags: the same bits after a kill, faults told plainly, the recipe's pieces."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from bridge.clues import weaktr_training
from bridge.clues.tag_samples import TagSamples, epoch_batches, light_augment
from bridge.clues.weaktr import WeakTr, WeakTrConfig, load_weaktr
from bridge.clues.weaktr_recipe import WeakTrRecipe, learning_rate
from bridge.clues.weaktr_start import start_from_deit
from bridge.clues.weaktr_training import tag_map, train_weaktr, weaktr_loss
from bridge.train_weaktr import main
from weaksam_jax.cli import entry_point
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays
from weaksam_jax.run_folder import RunFolder

TINY = dataclasses.replace(
    WeakTrRecipe.mini(),
    dim=32,
    depth=2,
    crop=32,
    epochs=4,
    warmup_epochs=1,
    batch_size=4,
    drop_path=0.2,
    workers=0,
)


def colours(folder: Path, count: int = 12) -> TagSplit:
    """Images of noise with a red (class 0), green (1) or blue (2) disc; every fourth has none."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        height, width = (int(side) for side in rng.integers(40, 64, 2))
        image = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
        tags = () if i % 4 == 3 else (i % 4,)
        for tag in tags:
            colour = [0, 0, 0]
            colour[2 - tag] = 255  # OpenCV is BGR
            cv2.circle(image, (width // 2, height // 2), 12, colour, -1)
        path = folder / f"{i:06d}.png"
        cv2.imwrite(str(path), image)
        records.append(TagRecord(i, path.name, path, width, height, tags))
    return TagSplit("colours", "train", ("red", "green", "blue"), (1, 2, 3), tuple(records))


def run(folder: Path, images: Path, recipe: WeakTrRecipe, seed: int = 0) -> dict:
    return load_file(train_weaktr(colours(images), recipe, RunFolder(folder), seed))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_resumes_with_the_same_bits(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", tmp_path / "images", TINY)
    # Stopped in the middle of the third epoch.
    calls = 0

    def stopping(*arguments):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return weaktr_loss(*arguments)

    monkeypatch.setattr("bridge.clues.weaktr_training.weaktr_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tmp_path / "images", TINY)
    assert not (tmp_path / "parts" / "clues" / "weaktr.safetensors").exists()
    monkeypatch.undo()
    assert same(whole, run(tmp_path / "parts", tmp_path / "images", TINY))
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [entry["step"] for entry in logs[1]] == [3, 6, 9, 12]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
    # A finished run is not repeated; another seed or recipe is another run.
    before = (tmp_path / "parts" / "clues" / "weaktr.safetensors").stat().st_mtime_ns
    run(tmp_path / "parts", tmp_path / "images", TINY)
    assert (tmp_path / "parts" / "clues" / "weaktr.safetensors").stat().st_mtime_ns == before
    assert not same(whole, run(tmp_path / "parts", tmp_path / "images", TINY, seed=1))


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_weaktr_training import TINY, run
run(Path(sys.argv[1]), Path(sys.argv[2]), TINY)
"""


@pytest.mark.slow
def test_kill_nine_and_again(tmp_path):
    """The process is killed at arbitrary moments until it gets through."""
    command = [sys.executable, "-c", CHILD.format(here=str(Path(__file__).parent))]
    command += [str(tmp_path / "killed"), str(tmp_path / "images")]
    # As many threads as this process has: sums in another order are other bits.
    threads = str(torch.get_num_threads())
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": threads}
    colours(tmp_path / "images")
    checkpoint = tmp_path / "killed" / "clues" / "checkpoint.safetensors"
    for _ in range(3):
        child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        while child.poll() is None:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != seen:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        child.wait()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    killed = load_file(tmp_path / "killed" / "clues" / "weaktr.safetensors")
    assert same(killed, run(tmp_path / "whole", tmp_path / "images", TINY))


def test_worker_processes_change_nothing(tmp_path):
    one = run(tmp_path / "a", tmp_path / "images", dataclasses.replace(TINY, epochs=1))
    two = run(tmp_path / "b", tmp_path / "images", dataclasses.replace(TINY, epochs=1, workers=2))
    assert same(one, two)


def test_learns_colours_from_tags(tmp_path):
    """A few seconds of training tell the discs apart, and the CAM lies on the disc."""
    recipe = dataclasses.replace(TINY, epochs=25, batch_size=8, lr=5e-3, drop_path=0.0, depth=1)
    path = train_weaktr(colours(tmp_path / "images", 24), recipe, RunFolder(tmp_path / "run"), 0)
    model = load_weaktr(path)
    assert model.config.classes == 3
    samples = TagSamples(
        colours(tmp_path / "images", 24),
        crop=48,
        min_scale=1.0,
        augment="light",
        jitter=0.1,
        seed=0,
    )
    images, labels = next(epoch_batches(samples, batch_size=24, first_epoch=0, epochs=1, workers=0))
    out = model.maps(images)
    assert tag_map(out.coarse_logits.numpy(), labels.numpy()) > 0.9


def tiny_deit(path: Path) -> dict:
    """Writes random weights of a DeiT with two blocks, wrapped and with a head as published."""
    torch.manual_seed(0)
    deit = WeakTr(PAPER_TINY.config(1)).state_dict()
    deit = {k: torch.randn_like(v) / 8 for k, v in deit.items() if not k.startswith(("head", "ad"))}
    head = {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    torch.save({"model": deit | head}, path)
    return deit


PAPER_TINY = dataclasses.replace(
    WeakTrRecipe.paper(batch_size=4, epochs=2, workers=0),
    dim=32,
    heads=2,
    depth=2,
    patch=8,
    crop=32,
    warmup_epochs=1,
)


def test_starts_from_deit(tmp_path):
    """Shared weights are the file's; token and position are copied for every class."""
    deit = tiny_deit(tmp_path / "deit.pth")
    torch.manual_seed(1)
    model = WeakTr(PAPER_TINY.config(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_from_deit(model, tmp_path / "deit.pth")
    for name, value in model.state_dict().items():
        if name == "cls_token":
            assert torch.equal(value, deit[name].repeat(1, 3, 1))
        elif name == "pos_embed":
            assert torch.equal(value[0, :3], deit[name][0, :1].repeat(3, 1))
            assert torch.equal(value[:, 3:], deit[name][:, 1:])
        elif name.startswith(("head.", "adaptive_attention_fusion.")):
            assert torch.equal(value, before[name])
        else:
            assert torch.equal(value, deit[name])


def full_deit() -> torch.nn.Module:
    from timm import create_model  # behind bridge, which makes its torchvision importable

    torch.manual_seed(0)
    return create_model("deit_small_patch16_224").eval()


def test_a_start_from_deit_is_deit(tmp_path):
    """With one class the tokens are those of timm's DeiT-S, which has the published layout."""
    deit = full_deit()
    torch.save({"model": deit.state_dict()}, tmp_path / "deit.pth")
    model = WeakTr(WeakTrRecipe.paper().config(1)).eval()
    start_from_deit(model, tmp_path / "deit.pth")
    image = torch.randn(1, 3, 224, 224)
    deit.norm = torch.nn.Identity()  # WeakTr does not use it
    with torch.inference_mode():
        token = deit.forward_features(image)[0, 0]
        torch.testing.assert_close(model(image).class_logits[0], token.mean(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_published_recipe_resumes(tmp_path, monkeypatch, mixed):
    """RandAugment and random erasing, from DeiT weights; float16 as on a GPU, here on the CPU."""
    monkeypatch.setattr("bridge.clues.weaktr_training._mixed_precision", lambda device: mixed)
    tiny_deit(tmp_path / "deit.pth")
    recipe = dataclasses.replace(PAPER_TINY, init=tmp_path / "deit.pth")
    whole = run(tmp_path / "whole", tmp_path / "images", recipe)

    def stopping(recipe, epoch):
        if epoch > 1:
            raise KeyboardInterrupt
        return learning_rate(recipe, epoch)

    with monkeypatch.context() as patch:
        patch.setattr("bridge.clues.weaktr_training.learning_rate", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", tmp_path / "images", recipe)
    _, metadata = read_arrays(tmp_path / "parts" / "clues" / "checkpoint.safetensors")
    assert metadata["epochs"] == "1"
    assert json.loads(metadata["scaler"]).get("_growth_tracker", 0) == (3 if mixed else 0)  # steps
    assert same(whole, run(tmp_path / "parts", tmp_path / "images", recipe))
    assert not same(whole, run(tmp_path / "seed", tmp_path / "images", recipe, seed=1))
    assert all(torch.isfinite(value).all() for value in whole.values())
    # Other weights to start from are another run, under the same name, too.
    deit = torch.load(tmp_path / "deit.pth", weights_only=True)["model"]
    torch.save({name: value * 2 for name, value in deit.items()}, tmp_path / "deit.pth")
    assert not same(whole, run(tmp_path / "parts", tmp_path / "images", recipe))


def test_the_scale_of_the_loss_is_restored(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    old, new = (weaktr_training._State.fresh(PAPER_TINY, 3, path, "key") for _ in range(2))
    old.scaler, new.scaler = (torch.amp.GradScaler("cpu", init_scale=one) for one in (8.0, 1024.0))
    old.save(5)
    assert new.restore() == 5
    assert new.scaler.state_dict() == old.scaler.state_dict()


def test_wrong_weights_to_start_from(tmp_path):
    deit = tiny_deit(tmp_path / "deit.pth")
    model = WeakTr(PAPER_TINY.config(3))
    for name, change, told in (
        ("lacking", {"blocks.1.norm1.bias": None}, r"missing: blocks\.1\.norm1\.bias"),
        ("larger", {"blocks.0.mlp.fc1.bias": torch.zeros(9)}, r"fc1\.bias \(9,\) instead of"),
        ("weaktr", {"cls_token": torch.zeros(1, 20, 32)}, r"cls_token \(1, 20, 32\)"),
        ("flat", {"pos_embed": torch.zeros(17, 32)}, r"pos_embed \(17, 32\) instead of"),
        ("other", dict.fromkeys(deit), "holds no named tensors"),
    ):
        state = {key: value for key, value in (deit | change).items() if value is not None}
        torch.save({"model": state}, tmp_path / f"{name}.pth")
        with pytest.raises(BadInput, match=rf"{name}\.pth.*{told}"):
            start_from_deit(model, tmp_path / f"{name}.pth")
    with pytest.raises(BadInput, match=r"none\.pth: does not exist; give the ImageNet"):
        recipe = dataclasses.replace(PAPER_TINY, init=tmp_path / "none.pth")
        run(tmp_path / "run", tmp_path / "images", recipe)


def test_the_command(tmp_path, capsys):
    """DeiT-S at full size on three images, with the help and a wrong file."""
    assert run_command("--help")[0] == 0
    assert "deit_small_patch16_224" in capsys.readouterr().out
    split = colours(tmp_path / "data" / "images", 3)
    rows = [f"{r.file_name},{split.classes[r.tags[0]]},train" for r in split.records]
    (tmp_path / "data" / "tags.csv").write_text("\n".join(["file,tags,split", *rows]))
    deit = full_deit().state_dict()
    torch.save({"model": deit}, tmp_path / "deit.pth")
    flags = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    flags += ["--batch-size", "3", "--epochs", "1", "--workers", "0", "--deit"]
    assert run_command(*flags, str(tmp_path / "data" / "tags.csv")) == (2, 1)
    assert run_command(*flags, str(tmp_path / "deit.pth"))[0] == 0
    model = load_weaktr(capsys.readouterr().out.strip())
    assert model.config == WeakTrConfig(3)
    moved = (model.blocks[0].mlp.fc1.weight - deit["blocks.0.mlp.fc1.weight"]).abs().max()
    assert 0 < moved < 1e-5  # one step at the first rate of the warm-up, 1e-6
    assert (tmp_path / "run" / "log.jsonl").exists()


def run_command(*arguments: str) -> tuple[int, int]:
    """Exit status and number of lines on stderr (progress bars aside) of the command."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            status = entry_point(main, list(arguments))
        except SystemExit as end:
            status = end.code or 0
    return status, sum(line.startswith("error:") for line in errors.getvalue().splitlines())


def test_faults(tmp_path):
    with pytest.raises(BadInput, match="fewer than a batch"):
        train_weaktr(colours(tmp_path / "few", 3), TINY, RunFolder(tmp_path / "run"), 0)
    run(tmp_path / "cut", tmp_path / "images", dataclasses.replace(TINY, epochs=1))
    for workers in (0, 2):
        train = colours(tmp_path / "broken")
        train.records[5].path.write_bytes(train.records[5].path.read_bytes()[:200])
        with pytest.raises(BadInput, match=r"000005\.png"):
            recipe = dataclasses.replace(TINY, workers=workers)
            train_weaktr(train, recipe, RunFolder(tmp_path / "run2"), 0)
    (tmp_path / "cut" / "clues" / "weaktr.safetensors").unlink()
    (tmp_path / "cut" / "clues" / "checkpoint.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(BadInput, match=r"checkpoint\.safetensors"):
        run(tmp_path / "cut", tmp_path / "images", dataclasses.replace(TINY, epochs=1))


def test_the_three_losses():
    torch.manual_seed(0)
    model = WeakTr(TINY.config(3))
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    losses, out = weaktr_loss(model.eval(), images, labels), model.maps(images)
    for name in ("class", "coarse", "fine"):
        logits = getattr(out, f"{name}_logits")
        expected = F.binary_cross_entropy_with_logits(logits, labels)
        torch.testing.assert_close(losses[name], expected)
    torch.testing.assert_close(losses["loss"], losses["class"] + losses["coarse"] + losses["fine"])


def test_tag_map_by_hand():
    scores = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.7, 0.3, 0], [0.6, 0.4, 0]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    # class 0: hits at ranks 1 and 3; class 1: a hit at rank 3; class 2 never occurs
    assert tag_map(scores, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)


def test_learning_rate():
    recipe = WeakTrRecipe.paper()
    assert learning_rate(recipe, 0) == 1e-6
    assert learning_rate(recipe, 5) == pytest.approx(7.5e-5)  # 6e-4 * 64 / 512
    assert learning_rate(recipe, 32.5) == pytest.approx((7.5e-5 + 1e-5) / 2)
    assert learning_rate(recipe, 60) == pytest.approx(1e-5)
    assert WeakTrRecipe.paper(batch_size=128).lr == pytest.approx(1.5e-4)
    assert WeakTrRecipe.paper(lr_at_512=2e-4).lr == pytest.approx(2.5e-5)  # COCO14


def test_light_augmentation_stays_in_the_image():
    """Crops of a ramp are ramps: every value lies inside, mirrored about half the time."""
    ramp = np.repeat(np.linspace(60, 120, 90, dtype=np.uint8)[None, :, None], 50, 0).repeat(3, 2)
    mirrored = 0
    for i in range(40):
        part = light_augment(ramp, 24, 0.3, 0.4, np.random.default_rng(i))
        assert part.shape == (24, 24, 3) and part.dtype == np.uint8
        steps = np.diff(part[12, :, 0].astype(int))
        assert (steps >= 0).all() or (steps <= 0).all()
        mirrored += steps.sum() < 0
    assert 10 < mirrored < 30

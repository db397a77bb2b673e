"""What every conversion, and every network of the package, states of its supervision."""

import json

import numpy as np
import pytest
import torch
from test_vgg16_weights import SMALL, random_state

import bridge.convert
from bridge.clues.networks import clue_supervision
from bridge.sam.mini.model import SEEN
from bridge.sam.networks import sam_supervision
from bridge.weights.kinds import KINDS
from weaksam_jax.cli import entry_point
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_metadata, write_arrays
from weaksam_jax.supervision import read_stated, saw

ARRAYS = {"a": np.ones(3, np.float32)}


def test_every_kind_of_conversion_states_it():
    boxes = {name for name, row in KINDS.items() if row.seen and "boxes" in row.seen.kinds}
    rcnn = {"faster_rcnn_torchvision", "faster_rcnn_detectron2"}
    assert boxes == rcnn | {name for name in KINDS if name.startswith("dino_")}
    others = {row.seen.kinds for name, row in KINDS.items() if row.seen and name not in boxes}
    assert others == {("tags",)} and [n for n, row in KINDS.items() if row.seen is None] == ["ours"]


def convert(*argv):
    bridge.convert.main(list(map(str, argv)))


def test_a_conversion_can_be_told_otherwise(tmp_path):
    path, to = tmp_path / "vgg.pth", tmp_path / "vgg.safetensors"
    torch.save(random_state("caffe", **SMALL, side=2), path)
    convert("vgg16", "--from", path, "--to", to)
    assert read_stated(to) == saw(["tags"], "ImageNet classes: VGG16")
    told = ("--supervision", "boxes,masks", "--note", "a detector's backbone")
    convert("vgg16", "--from", path, "--to", to, *told)
    assert read_stated(to) == saw(["boxes", "masks"], "a detector's backbone")
    convert("vgg16", "--from", path, "--to", to, "--supervision", "none")
    assert read_stated(to).source.startswith("stated by hand: ImageNet")
    assert read_metadata(to)["backbone"] == "vgg16"
    with pytest.raises(BadInput, match="--supervision: tgs is no kind of supervision; did you"):
        convert("vgg16", "--from", path, "--to", to, "--supervision", "tgs")


def test_a_file_of_ours_that_does_not_say_is_stated(tmp_path, capsys):
    path, to = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    write_arrays(path, ARRAYS, {"detector": "mil", "config": json.dumps({})})
    convert("ours", "--from", path, "--to", to, "--supervision", "tags")
    assert read_stated(to).kinds == ("tags",) and read_metadata(to)["detector"] == "mil"
    convert("ours", "--from", path, "--to", to)
    assert read_stated(to).kinds == ("unknown",)
    assert entry_point(bridge.convert.main, ["ours", "--to", str(to)]) == 2
    assert "--from: is missing" in capsys.readouterr().err


def test_packaged_and_published_networks_state_it(tmp_path):
    for name, seen in SEEN.items():
        assert sam_supervision(name) == seen and "masks" in seen.kinds
    assert sam_supervision("sam_vit_h_4b8939.pth").kinds == ("masks",)
    head = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)}
    write_arrays(tmp_path / "head.safetensors", head, {})
    assert clue_supervision(tmp_path / "head.safetensors").kinds == ("tags",)
    write_arrays(tmp_path / "head.safetensors", head, saw(["tags", "text"], "x").metadata())
    assert clue_supervision(tmp_path / "head.safetensors") == saw(["tags", "text"], "x")
    clip = {"visual.conv1.weight": torch.ones(1, 3, 2, 2)}
    torch.save(clip, tmp_path / "clip.pth")
    assert clue_supervision(tmp_path / "clip.pth").kinds == ("text",)

"""Choosing the clue network of a run: a training recipe or a file of weights."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_pipeline import flags, options

from bridge.clues.weaktr import WeakTr, WeakTrConfig
from bridge.clues.weaktr_recipe import WeakTrRecipe
from experiments.pipeline import clues
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.graph import graph, run_pipeline
from experiments.pipeline.run import new_run
from weaksam_jax.data.datasets import open_tags, split_names
from weaksam_jax.data.images import load_image
from weaksam_jax.errors import BadInput


def weights(path: Path, classes: int, seed: int) -> Path:
    torch.manual_seed(seed)
    torch.save(WeakTr(WeakTrConfig(classes, 128, 2, 2)).state_dict(), path)
    return path


def keys(data: Path, *more: str) -> dict[str, list]:
    run = new_run(options(*flags(data, data.parent, *more)))
    return {stage.name: stage.settings for stage in graph(run)}


def test_a_file_of_weights_is_used_as_it_is(tiny_data, tmp_path):
    train = open_tags(tiny_data, split_names(tiny_data)["train"])
    file = weights(tmp_path / "clues.pth", len(train.classes), 0)
    more = ("--clues", str(file), "--clue-use.fusion", "uniform")
    asked = options(*flags(tiny_data, tmp_path / "run", *more, "--stages", "data,clues"))
    run_pipeline(asked)
    run = new_run(asked)
    assert not (tmp_path / "run" / "clues" / "weaktr.safetensors").exists()  # nothing was trained
    network = clues.load(run, train)
    assert network.config.fusion == "uniform" and network.config.dim == 128
    record = train.records[0]
    found = network(load_image(record.path), record.tags)
    assert found.class_ids.tolist() == sorted(record.tags)
    # Another network under the same name is noticed; how it is used concerns the proposals.
    before = keys(tiny_data, *more)
    assert before == keys(tiny_data, *more)
    plain = keys(tiny_data, *more[:2])
    assert plain["clues"] == before["clues"] and plain["proposals"] != before["proposals"]
    weights(file, len(train.classes), 1)
    assert keys(tiny_data, *more)["clues"] != before["clues"]
    weights(file, len(train.classes) + 1, 1)
    with pytest.raises(BadInput, match=r"clues\.pth: has \d+ classes, the data set has"):
        clues.load(run, train)


def test_the_published_recipe(tmp_path):
    chosen = dataclasses.replace(PipelineConfig(), clues="weaktr_paper")
    with pytest.raises(BadInput, match=r"--weaktr\.init: is missing"):
        chosen.clue_recipe()
    init = dataclasses.replace(chosen.weaktr, init=tmp_path / "deit.pth", workers=7)
    recipe = dataclasses.replace(chosen, weaktr=init).clue_recipe()
    assert recipe == WeakTrRecipe.paper(tmp_path / "deit.pth", workers=7)
    assert recipe.config(20) == WeakTrConfig(20, drop_path=0.1)


def test_no_such_network(tiny_data, tmp_path):
    with pytest.raises(BadInput, match=r"weaktrr: is no clue network; give weaktr, weaktr_paper"):
        keys(tiny_data, "--clues", "weaktrr")

"""Published networks as the MIL stage's settings name them: weights to start from, what is fed,
what is frozen, and one step of each recipe at a small width."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_mil import TINY

from weaksam_jax.detectors.mil import recipes
from weaksam_jax.detectors.mil.detect import detect_wsod
from weaksam_jax.detectors.mil.train import train_wsod
from weaksam_jax.engine.checkpoint import save_params
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.errors import BadInput

SMALL = {name: getattr(TINY, name) for name in ("scales", "max_proposals", "batch", "test_batch")}
SMALL |= {"steps": 2, "warmup": 1, "width": 8, "pool_size": 2, "test_scales": None}
RECIPES = [
    (recipe, method)
    for recipe in (recipes.voc07, recipes.voc12, recipes.coco14)
    for method in ("mist", "oicr")
]


@pytest.mark.parametrize(("recipe", "method"), RECIPES)
def test_recipes_have_the_released_numbers(recipe, method):
    """20-wsod.md, section 6, with the epochs of 8 images a step."""
    images = {"voc07": 5011, "voc12": 11540, "coco14": 82783}[recipe.__name__]
    epochs = {
        ("voc07", "mist"): (47.9, [31.9, 42.6]),
        ("voc12", "mist"): (22.2, [13.9, 18.5]),
        ("coco14", "mist"): (12.1, [8.0, 11.1]),
        ("voc07", "oicr"): (50, [36]),
        ("voc12", "oicr"): (25, [18]),
        ("coco14", "oicr"): (12, [8, 11]),
    }[recipe.__name__, method]
    s = recipe(method)
    assert s.batch == 8 and s.weight_decay == 5e-4 and s.optimizer == "adam_l2"
    assert s.steps * 8 / images == pytest.approx(epochs[0], abs=0.06)
    assert [one * 8 / images for one in s.milestones] == pytest.approx(epochs[1], abs=0.06)
    views = len(s.test_scales or s.scales) * (2 if s.test_mirrored else 1)
    assert views == {"mist": 14, "oicr": 6 if recipe is recipes.coco14 else 5}[method]
    assert max(max(canvas) for scale in s.scales for canvas in scale) == 2000


@pytest.mark.parametrize("method", ["mist", "oicr"])
def test_a_recipe_trains_and_detects_and_keeps_the_frozen_blocks(world, tmp_path, method):
    train, test, proposals = world
    settings = dataclasses.replace(recipes.voc07(method), init="scratch", **SMALL)
    mesh = data_mesh(jax.devices()[:1])
    start = dataclasses.replace(settings, steps=0)
    before = train_wsod(train, proposals, start, tmp_path / "start", mesh, 0)["backbone"]
    params = train_wsod(train, proposals, settings, tmp_path / "run", mesh, 0)
    assert "tags" not in params and params["fc6"]["kernel"].shape == (2 * 2 * 512, 8)
    for name, layer in params["backbone"].items():
        moved = (layer["kernel"] != before[name]["kernel"]).any()
        assert moved == (method == "oicr" or int(name[4]) > 2)
    found = detect_wsod(params, test, proposals, settings, tmp_path / "run")
    assert {one["image_id"] for one in found} == {one.image_id for one in test.records}
    # A detector trained here is a start like a converted one.
    save_params(tmp_path / "params.safetensors", params)
    again = dataclasses.replace(start, init=str(tmp_path / "params.safetensors"))
    loaded = train_wsod(train, proposals, again, tmp_path / "again", mesh, 5)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, params))


def test_resnet50_and_the_drop_block_train(world, tmp_path):
    train, _, proposals = world
    settings = dataclasses.replace(
        recipes.voc07(), backbone="resnet50", neck=8, drop_block=True, init="scratch", **SMALL
    )
    mesh = data_mesh(jax.devices()[:1])
    start = dataclasses.replace(settings, steps=0)
    before = train_wsod(train, proposals, start, tmp_path / "start", mesh, 0)
    after = train_wsod(train, proposals, settings, tmp_path / "run", mesh, 0)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    body = moved["backbone"]
    assert not any(jax.tree.leaves((body["stem"], body["res2"])))
    assert body["res3"]["block0"]["conv1"]["conv"]["kernel"]
    assert not any(jax.tree.leaves(body["res5"]["block0"]["conv1"]["norm"]))
    assert moved["drop_block"]["conv1"]["kernel"] and moved["fc6"]["kernel"]


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_a_published_network_asks_for_its_weights(world, tmp_path, backbone):
    train, _, proposals = world
    settings = dataclasses.replace(recipes.voc07(), backbone=backbone, **SMALL)
    with pytest.raises(BadInput, match=rf"has no weights for {backbone}; set init .*convert"):
        train_wsod(train, proposals, settings, tmp_path, data_mesh(jax.devices()[:1]), 0)

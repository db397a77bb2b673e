"""Published networks as configs name them: weights to start from, what is fed, what is frozen, and
one step of each recipe at a small width."""

import jax
import numpy as np
import pytest
from configs import vary
from tiny_mil import TINY, detect, train

from weaksam_jax.detectors import load_detector, save_detector
from weaksam_jax.detectors.mil import MilConfig, MilDetector, recipes
from weaksam_jax.engine.weights import flatten
from weaksam_jax.errors import BadInput

RECIPES = [
    (recipe, method)
    for recipe in (recipes.voc07, recipes.voc12, recipes.coco14)
    for method in ("mist", "oicr")
]


def small(config: MilConfig, **parts) -> MilConfig:
    """The config at `TINY`'s size, two steps from fresh weights."""
    sizes = {
        "model": {"fc_width": 8, "pool_size": 2, "backbone_width": 8},
        "optim": {"steps": 2, "warmup": 1, "batch_size": 2, "init": "scratch"},
        "data": {"scales": TINY.data.scales, "max_proposals": 24},
        "test": {"tta_scales": None, "batch_size": 2},
    }
    return vary(vary(config, **sizes), **parts)


@pytest.mark.parametrize(("recipe", "method"), RECIPES)
def test_recipes_have_the_official_numbers(recipe, method):
    """docs/provenance/mil.md, section 6, with the epochs of 8 images per step."""
    images = {"voc07": 5011, "voc12": 11540, "coco14": 82783}[recipe.__name__]
    epochs = {
        ("voc07", "mist"): (47.9, [31.9, 42.6]),
        ("voc12", "mist"): (22.2, [13.9, 18.5]),
        ("coco14", "mist"): (12.1, [8.0, 11.1]),
        ("voc07", "oicr"): (50, [36]),
        ("voc12", "oicr"): (25, [18]),
        ("coco14", "oicr"): (12, [8, 11]),
    }[recipe.__name__, method]
    config = recipe(method)
    optim, test = config.optim, config.test
    assert optim.batch_size == 8 and optim.weight_decay == 5e-4 and optim.optimizer == "adam_l2"
    assert optim.steps * 8 / images == pytest.approx(epochs[0], abs=0.06)
    assert [one * 8 / images for one in optim.milestones] == pytest.approx(epochs[1], abs=0.06)
    views = len(test.tta_scales or config.data.scales) * (2 if test.tta_flip else 1)
    assert views == {"mist": 14, "oicr": 6 if recipe is recipes.coco14 else 5}[method]
    assert max(max(size) for scale in config.data.scales for size in scale) == 2000


@pytest.mark.parametrize("method", ["mist", "oicr"])
def test_a_recipe_trains_and_detects_and_keeps_the_frozen_blocks(drawn, tmp_path, method):
    split, test, proposals = drawn
    config = small(recipes.voc07(method))
    start = vary(config, optim={"steps": 0})
    before = train(split, proposals, start, tmp_path / "start")["backbone"]
    params = train(split, proposals, config, tmp_path / "run")
    assert "tags" not in params and params["fc6"]["kernel"].shape == (2 * 2 * 64, 8)
    for name, layer in params["backbone"].items():
        moved = (layer["kernel"] != before[name]["kernel"]).any()
        assert moved == (method == "oicr" or int(name[4]) > 2)
    found = detect(params, test, proposals, config, tmp_path / "run")
    assert {one["image_id"] for one in found} == {one.image_id for one in test.records}
    # A detector trained here is a start like a converted one, and its file says what it is.
    path = tmp_path / "params.safetensors"
    save_detector(path, MilDetector(config, split.classes), params)
    again = vary(start, optim={"init": str(path)})
    loaded = train(split, proposals, again, tmp_path / "again", seed=5)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, params))
    detector, loaded = load_detector(path)
    assert (detector.config, detector.classes) == (config, split.classes)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, params))


def test_resnet50_and_the_drop_block_train(drawn, tmp_path):
    split, _, proposals = drawn
    config = small(
        recipes.voc07(),
        model={"backbone": "resnet50", "pixels": None, "neck": 8, "drop_block": True},
        optim={"frozen": ("stem", "res2")},
    )
    before = train(split, proposals, vary(config, optim={"steps": 0}), tmp_path / "start")
    after = train(split, proposals, config, tmp_path / "run")
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    body = moved["backbone"]
    assert not any(jax.tree.leaves((body["stem"], body["res2"])))
    assert body["res3"]["block0"]["conv1"]["conv"]["kernel"]
    norms = {name: one for name, one in flatten(body).items() if "norm" in name}
    assert norms and not any(norms.values())
    assert moved["drop_block"]["conv1"]["kernel"] and moved["fc6"]["kernel"]


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50", "resnet50_msra", "lite0"])
def test_a_published_network_asks_for_its_weights(drawn, tmp_path, backbone):
    split, _, proposals = drawn
    model = {"backbone": backbone, "pixels": None, "neck": 8}
    config = small(recipes.voc07(), model=model, optim={"init": None})
    with pytest.raises(BadInput, match=rf"no weights for its backbone {backbone}; .*convert"):
        train(split, proposals, config, tmp_path)

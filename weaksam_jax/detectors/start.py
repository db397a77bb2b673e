"""What a detector's training starts from: fresh weights, ImageNet's, or those of a detector."""

from collections.abc import Sequence
from typing import Any

from weaksam_jax.backbones import BACKBONES
from weaksam_jax.engine.step import Params
from weaksam_jax.engine.weights import Weights, fill
from weaksam_jax.errors import BadInput
from weaksam_jax.text import parse_json


def start_from(
    fresh: Params,
    weights: Weights | None,
    *,
    kind: str,
    model: Any,
    stated: Sequence[str],
    optional: Sequence[str] = (),
    imagenet: Sequence[str] = ("backbone/",),
    scratch: bool = False,
) -> Params:
    """`fresh` parameters with the arrays of a file in their place.

    kind: row of `DETECTORS`; model: the detector's model config, of which the fields `stated` must
    agree with what the file states. A file with metadata `backbone` holds ImageNet weights: they
    give the parts `imagenet` as far as both have them. One of another kind of detector gives its
    backbone. Any other is a whole detector, of which the parts `optional` may be missing.
    scratch: whether a published backbone may start without weights. Raises `BadInput` when it has
    none and may not, and, naming the file and the tensor, when the file does not fit.
    """
    if weights is None:
        if not scratch and not BACKBONES[model.backbone].scratch:
            problem = f"has no weights for its backbone {model.backbone}"
            hint = 'set optim.init to a file of bridge.convert, or to "scratch"'
            raise BadInput(f"the detector ({kind})", problem, hint)
        return fresh
    if "backbone" in weights.metadata:
        return _from_imagenet(fresh, weights, model=model, parts=imagenet)
    if weights.metadata.get("detector", kind) != kind:
        return _from_other(fresh, weights, model=model)
    check_stated(weights, model, stated)
    hint = "give weights of the network that model and classes describe"
    return fill(fresh, weights, optional=lambda name: name.startswith(tuple(optional)), hint=hint)


def stated_config(weights: Weights) -> dict:
    """The config in a detector's file, as JSON; `BadInput` when it is no object."""
    config = parse_json(weights.metadata.get("config", "{}"), f"{weights.path} (metadata config)")
    if not isinstance(config, dict):
        raise BadInput(weights.path, "(metadata config) is no object", "make the file again")
    return config


def stated_model(weights: Weights) -> dict:
    """The part `model` of that config; empty where it has none."""
    model = stated_config(weights).get("model", {})
    return model if isinstance(model, dict) else {}


def check_stated(weights: Weights, model: Any, fields: Sequence[str]) -> None:
    """`BadInput` when a detector's file states that it was trained with another value of one of
    these fields of its model config, which shapes do not tell."""
    theirs = stated_model(weights)
    for name in fields:
        own, other = getattr(model, name), theirs.get(name, getattr(model, name))
        if _meant(name, other, model) != _meant(name, own, model):
            problem = f"was trained with model.{name} {other}, not {own}"
            raise BadInput(weights.path, problem, f"set model.{name} to {other}")


def _meant(name: str, value: Any, model: Any) -> Any:
    """A stated value, with the backbone's own pixels where none are named."""
    return BACKBONES[model.backbone].pixels if (name, value) == ("pixels", None) else value


def _from_imagenet(fresh: Params, weights: Weights, *, model: Any, parts: Sequence[str]) -> Params:
    check_backbone(weights, model)
    arrays = weights.arrays
    if not any(name.startswith("backbone/") for name in arrays):
        arrays = {f"backbone/{name}": value for name, value in arrays.items()}
    given = Weights(weights.path, arrays, weights.metadata)
    return fill(fresh, given, optional=lambda name: not name.startswith(tuple(parts)), unknown=True)


def check_backbone(weights: Weights, model: Any) -> None:
    """`BadInput` when ImageNet weights are another backbone's, or saw other pixels than this one is
    fed with: shapes do not tell, and it costs several AP without a word."""
    theirs = weights.metadata["backbone"]
    if theirs != model.backbone:
        hint = f"set model.backbone to {theirs}, or give the weights of {model.backbone}"
        raise BadInput(weights.path, f"holds weights of {theirs}, not of {model.backbone}", hint)
    # OICR's official code for COCO feeds RGB to weights trained on BGR; the reverse is a mistake.
    pixels = getattr(model, "pixels", None)
    if weights.metadata.get("pixels") == "rgb" and pixels != "torchvision":
        problem = f'was trained on RGB pixels, but model.pixels is "{pixels}"'
        raise BadInput(weights.path, problem, 'set model.pixels to "torchvision"')


def _from_other(fresh: Params, weights: Weights, *, model: Any) -> Params:
    """The backbone of another kind of detector, where it has the same."""
    theirs = stated_model(weights).get("backbone")
    if theirs != model.backbone:
        hint = f"set optim.init to weights of {model.backbone}"
        raise BadInput(weights.path, f"is a detector over {theirs}, not {model.backbone}", hint)
    shared, given = BACKBONES[model.backbone].shared, weights.part("backbone/")
    return {**fresh, "backbone": _fill_backbone(fresh["backbone"], given, shared)}


def _fill_backbone(own: Params, given: Weights, shared: str) -> Params:
    """A backbone's parameters from those of another detector, each of the form (a pyramid or a
    single map) that its detector uses. shared: see `Backbone`."""
    is_pyramid = bool(shared) and any(name.startswith(f"{shared}/") for name in given.arrays)
    wants_pyramid = bool(shared) and shared in own
    if wants_pyramid and not is_pyramid:
        return {**own, shared: fill(own[shared], given)}
    given = given.part(f"{shared}/") if is_pyramid and not wants_pyramid else given
    return fill(own, given, unknown=True)  # Lite0's head is the MIL detector's alone

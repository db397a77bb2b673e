"""DINO with ResNet-50 of any library as ours, and back.

Names here are those of `weaksam_jax.detectors.dino.model.DinoNetwork` joined by "/". Channels,
queries, classes, widths, numbers of layers and of levels are read off the tensors, and every other
tensor must fit them; how many heads share the channels no tensor tells.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from bridge.weights.metadata import detector_metadata
from bridge.weights.naming import HINT, Naming, Taken
from bridge.weights.r50_fpn import (
    LONG_SIDE,
    MULTIPLE,
    SHORT_SIDE,
    Arrays,
    to_ours,
    to_theirs,
    transpose,
    untranspose,
)
from weaksam_jax.data.scales import padded_sizes
from weaksam_jax.errors import BadInput

STRIDES = (4, 8, 16, 32)  # of ResNet-50
HEADS, NECK_GROUPS = 8, 32  # of every published configuration
# What all libraries have in common and no array tells.
COMMON = {"backbone": "resnet50", "encoder": "deformable", "neck_groups": NECK_GROUPS}
# The published test: one view, the best 300 pairs of query and class, no NMS.
TEST = {
    "tta_scales": [padded_sizes(SHORT_SIDE, LONG_SIDE, MULTIPLE)],
    "tta_flip": False,
    "score_threshold": 0.0,
    "max_detections": 300,
}
_RAW = ("encoder/level_embed", "query_embed", "label_embed")  # no layers, but arrays alone
_THIRDS = ("query", "key", "value")  # which the libraries hold as one matrix


@dataclass(frozen=True)
class Layout:
    """How a library names the parts of its DINO.

    prefix: what the names of the backbone begin with; backbone: its ResNet-50. neck: (level, how
    many levels are the backbone's, "conv" or "norm") -> their layer. head: (decoder layer, None for
    the first stage; layer of the box head, None for the class head; number of decoder layers) ->
    theirs. rules: (pattern of our layer, theirs), the first that fits; arrays that are no layers
    with their full name. stated: fields of the model's config that the library determines. ignored:
    beginnings of names that are no weights of ours.
    """

    prefix: str
    backbone: Naming
    neck: Callable[[int, int, str], str]
    head: Callable[[int | None, int | None, int], str]
    rules: tuple[tuple[str, str], ...]
    stated: Mapping[str, Any]
    ignored: tuple[str, ...] = ()

    def theirs(self, layer: str, own: int, last: int) -> str:
        """Their name of a layer of ours, where `own` levels are the backbone's and `last` is the
        number of decoder layers."""
        if part := re.fullmatch(r"neck/level(\d+)_(conv|norm)", layer):
            return self.neck(int(part[1]), own, part[2])
        if part := re.fullmatch(r"(?:class|box)_heads_(\d+)(?:/fc(\d))?", layer):
            index, inner = int(part[1]), part[2] and int(part[2])
            return self.head(None if index == last else index, inner, last)
        for pattern, name in self.rules:
            if found := re.fullmatch(pattern, layer):
                return found.expand(name)
        raise KeyError(layer)


@dataclass(frozen=True)
class Sizes:
    """What the arrays tell. own: levels of the backbone; further: those behind them; samples: of an
    attention: heads x levels x points."""

    channels: int
    queries: int
    classes: int
    own: int
    further: int
    encoder_layers: int
    decoder_layers: int
    ffn_width: int
    samples: int


def dino_arrays(
    tensors: Mapping[str, np.ndarray],
    layout: Layout,
    source: str | Path,
    *,
    heads: int = HEADS,
    classes: Sequence[str] | None = None,
) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of a library's tensors, float32.

    heads: of every attention. classes: their names in the file's order. Raises `BadInput` with
    `source` for the first tensor that is missing, unknown or misshaped, and for sizes that no DINO
    of ours has.
    """
    trunk = {name: one for name, one in tensors.items() if name.startswith(layout.prefix)}
    found = to_ours(trunk, layout.backbone, source)
    arrays = {f"backbone/{name}": value for name, value in found.items()}
    width = arrays["backbone/stem/norm/scale"].size
    taken = Taken({name: one for name, one in tensors.items() if name not in trunk}, source)
    sizes = read_sizes(partial(_shape_of_theirs, taken, layout))
    model = _model(sizes, heads, source) | {"backbone_width": width, **layout.stated}
    for layer, shape in layer_shapes(sizes, width).items():
        name = layout.theirs(layer, sizes.own, sizes.decoder_layers)
        arrays |= _taken_layer(taken, layer, name, shape=shape, bias=model["neck_bias"])
    taken.check_unknown(layout.ignored)
    config = {"model": model, "test": TEST}
    return arrays, detector_metadata("dino", config, sizes.classes, classes=classes, source=source)


def dino_tensors(arrays: Arrays, layout: Layout, source: str | Path) -> Arrays:
    """Our arrays under a library's names and layouts, the inverse of `dino_arrays`.

    Raises `BadInput` with `source` when they are of another network than the library's.
    """
    trunk = {
        name.removeprefix("backbone/"): value
        for name, value in arrays.items()
        if name.startswith("backbone/")
    }
    try:
        tensors, sizes = to_theirs(trunk, layout.backbone), read_sizes(_shapes_of(arrays))
        width = trunk["stem/norm/scale"].size
        for layer in layer_shapes(sizes, width):
            name = layout.theirs(layer, sizes.own, sizes.decoder_layers)
            tensors |= _written_layer(arrays, layer, name, bias=layout.stated["neck_bias"])
    except (KeyError, ValueError, IndexError) as error:
        raise BadInput(source, f"is no DINO over ResNet-50 ({error})", HINT) from error
    back, _ = dino_arrays(tensors, layout, source, heads=1)  # any number: it is not kept there
    if unknown := sorted(arrays.keys() - back.keys()):
        raise BadInput(source, f"has {unknown[0]}, for which the library has no place", HINT)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


def read_sizes(find: Callable[..., tuple[int, ...] | None]) -> Sizes:
    """The sizes of a network. find(layer, own levels, dimensions) -> the shape of what tells its
    size, in PyTorch's layout; None where there is no such layer and dimensions is 0."""

    def counted(layer: str, own: int, start: int = 0) -> int:
        present = takewhile(lambda i: find(layer.format(i), own, 0) is not None, count(start))
        return sum(1 for _ in present)

    def is_own(level: int) -> bool:
        return (find(f"neck/level{level}_conv", level + 1, 0) or ())[-1:] == (1,)

    own = min(sum(1 for _ in takewhile(is_own, count())), len(STRIDES))
    find(f"neck/level{max(0, own - 1)}_conv", max(1, own), 4)  # names the first that is missing
    queries, channels = find("query_embed", own, 2)
    for layer in ("encoder/layer0/norm0", "decoder/layer0/norm0"):
        find(layer, own, 1)
    return Sizes(
        channels=channels,
        queries=queries,
        classes=find("class_heads_0", own, 2)[0],
        own=own,
        further=counted("neck/level{}_conv", own, own),
        encoder_layers=counted("encoder/layer{}/norm0", own),
        decoder_layers=counted("decoder/layer{}/norm0", own),
        ffn_width=find("decoder/layer0/ffn/fc0", own, 2)[0],
        samples=find("decoder/layer0/cross_attn/attention_weights", own, 2)[0],
    )


def layer_shapes(sizes: Sizes, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all layers behind the backbone in PyTorch's layout: of a convolution's and a dense
    kernel, of a norm's scale, of an array. width: of ResNet-50's stem."""
    side = (sizes.channels, sizes.channels)
    shapes = _neck_shapes(sizes, width)
    shapes["encoder/level_embed"] = (sizes.own + sizes.further, sizes.channels)
    for i in range(sizes.encoder_layers):
        shapes |= _layer_shapes(f"encoder/layer{i}", sizes, ("self_attn",), norms=2)
    for i in range(sizes.decoder_layers):
        shapes[f"decoder/layer{i}/self_attn/in"] = (3 * sizes.channels, sizes.channels)
        shapes[f"decoder/layer{i}/self_attn/out"] = side
        shapes |= _layer_shapes(f"decoder/layer{i}", sizes, ("cross_attn",), norms=3)
    shapes["decoder/norm"] = side[:1]
    shapes["decoder/ref_point_head/fc0"] = (sizes.channels, 2 * sizes.channels)
    shapes |= {"decoder/ref_point_head/fc1": side, "memory_fc": side, "memory_norm": side[:1]}
    for i in range(sizes.decoder_layers + 1):
        shapes[f"class_heads_{i}"] = (sizes.classes, sizes.channels)
        shapes |= {f"box_heads_{i}/fc{j}": side for j in range(2)}
        shapes[f"box_heads_{i}/fc2"] = (4, sizes.channels)
    shapes["query_embed"] = (sizes.queries, sizes.channels)
    return shapes | {"label_embed": (sizes.classes, sizes.channels)}


def _neck_shapes(sizes: Sizes, width: int) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for level in range(sizes.own + sizes.further):
        inputs, side = width * STRIDES[level - sizes.own] if level < sizes.own else 0, 1
        if level >= sizes.own:
            inputs, side = (32 * width if level == sizes.own else sizes.channels), 3
        shapes[f"neck/level{level}_conv"] = (sizes.channels, inputs, side, side)
        shapes[f"neck/level{level}_norm"] = (sizes.channels,)
    return shapes


def _layer_shapes(
    layer: str, sizes: Sizes, attentions: Sequence[str], norms: int
) -> dict[str, tuple[int, ...]]:
    """A layer of the encoder or the decoder, but for attention that is not deformable."""
    channels, side = sizes.channels, (sizes.channels, sizes.channels)
    shapes = {}
    for name in attentions:
        shapes[f"{layer}/{name}/sampling_offsets"] = (2 * sizes.samples, channels)
        shapes[f"{layer}/{name}/attention_weights"] = (sizes.samples, channels)
        shapes |= {f"{layer}/{name}/{part}": side for part in ("value_proj", "output_proj")}
    shapes[f"{layer}/ffn/fc0"] = (sizes.ffn_width, channels)
    shapes[f"{layer}/ffn/fc1"] = (channels, sizes.ffn_width)
    return shapes | {f"{layer}/norm{i}": (channels,) for i in range(norms)}


def _model(sizes: Sizes, heads: int, source: str | Path) -> dict[str, Any]:
    """The model's config; `BadInput` where the sizes do not fit together."""
    if not sizes.own:
        raise BadInput(source, "its first level is no 1x1 convolution of the backbone's", HINT)
    levels = sizes.own + sizes.further
    points, rest = divmod(sizes.samples, heads * levels)
    if rest or not points or sizes.channels % heads:
        what = f"{sizes.channels} channels and {sizes.samples} weights of an attention"
        problem = f"has {what}, which {heads} heads and {levels} levels do not divide"
        raise BadInput(source, problem, "say how many heads it has: --heads")
    if sizes.channels % NECK_GROUPS:
        problem = f"has {sizes.channels} channels, not a multiple of {NECK_GROUPS} (its GroupNorm)"
        raise BadInput(source, problem, HINT)
    further = tuple(STRIDES[-1] * 2 ** (i + 1) for i in range(sizes.further))
    return {
        **COMMON,
        "strides": (*STRIDES[-sizes.own :], *further),
        "channels": sizes.channels,
        "heads": heads,
        "points": points,
        "ffn_width": sizes.ffn_width,
        "encoder_layers": sizes.encoder_layers,
        "decoder_layers": sizes.decoder_layers,
        "queries": sizes.queries,
    }


def _shape_of_theirs(
    taken: Taken, layout: Layout, layer: str, own: int, dimensions: int
) -> tuple[int, ...] | None:
    name = layout.theirs(layer, own, last=-1)  # no head of the first stage tells a size
    name = name if layer in _RAW else f"{name}.weight"
    return taken.shape(name, dimensions) if dimensions else taken.found_shape(name)


def _shapes_of(arrays: Arrays) -> Callable[..., tuple[int, ...] | None]:
    """`find` of `read_sizes` in our arrays; KeyError for what is missing."""

    def find(layer: str, own: int, dimensions: int) -> tuple[int, ...] | None:
        del own
        names = (layer, f"{layer}/kernel", f"{layer}/scale")
        found = [arrays[name] for name in names if name in arrays]
        if not found and dimensions:
            raise KeyError(layer)
        if not found:
            return None
        return found[0].shape if layer in _RAW else untranspose(found[0]).shape

    return find


def _taken_layer(
    taken: Taken, layer: str, name: str, *, shape: tuple[int, ...], bias: bool
) -> Arrays:
    """A layer's arrays. bias: whether convolutions have one."""
    if layer == "label_embed":  # some have further rows, of no class
        rows = taken.shape(name, 2)[0]
        return {layer: taken(name, (max(rows, shape[0]), shape[1]))[: shape[0]]}
    if layer in _RAW:
        return {layer: taken(name, shape)}
    if layer.endswith("self_attn/in"):
        weight, shift = taken(f"{name}_weight", shape), taken(f"{name}_bias", shape[:1])
        thirds = zip(_THIRDS, np.split(weight, 3), np.split(shift, 3), strict=True)
        root = layer.removesuffix("in")
        return {
            f"{root}{part}/{leaf}": np.ascontiguousarray(value)
            for part, own, own_bias in thirds
            for leaf, value in (("kernel", own.T), ("bias", own_bias))
        }
    first = "scale" if len(shape) == 1 else "kernel"
    weight = taken(f"{name}.weight", shape)
    found = {f"{layer}/{first}": np.ascontiguousarray(transpose(weight))}
    if len(shape) == 4 and not bias:
        return found
    return found | {f"{layer}/bias": taken(f"{name}.bias", shape[:1])}


def _written_layer(arrays: Arrays, layer: str, name: str, *, bias: bool) -> Arrays:
    """The inverse of `_taken_layer`; KeyError for an array that is missing."""
    if layer in _RAW:
        return {name: arrays[layer]}
    if layer.endswith("self_attn/in"):
        root = layer.removesuffix("in")
        kernels = [arrays[f"{root}{part}/kernel"].T for part in _THIRDS]
        biases = [arrays[f"{root}{part}/bias"] for part in _THIRDS]
        return {f"{name}_weight": np.concatenate(kernels), f"{name}_bias": np.concatenate(biases)}
    convolution = f"{layer}/kernel" in arrays and arrays[f"{layer}/kernel"].ndim == 4
    first = arrays[f"{layer}/scale"] if f"{layer}/scale" in arrays else arrays[f"{layer}/kernel"]
    found = {f"{name}.weight": untranspose(first)}
    if convolution and not bias:
        return found
    return found | {f"{name}.bias": arrays[f"{layer}/bias"]}

"""A random DINO of the smallest size in the layouts of mmdetection, its authors and detrex."""

import functools
import re

import numpy as np

from bridge.weights.naming import conv_names
from bridge.weights.resnet50 import torchvision_prefixes

WIDTH, CHANNELS, FFN, QUERIES, CLASSES, SAMPLES = 2, 32, 6, 7, 3, 8 * 4 * 2
LEVELS, ENCODER, DECODER = 4, 1, 2


def attention(name):
    rows = {"sampling_offsets": 2 * SAMPLES, "attention_weights": SAMPLES}
    rows |= {"value_proj": CHANNELS, "output_proj": CHANNELS}
    return {f"{name}.{part}": (count, CHANNELS) for part, count in rows.items()}


def layer(name, norms):
    ffn = {f"{name}.ffn.layers.0.0": (FFN, CHANNELS), f"{name}.ffn.layers.1": (CHANNELS, FFN)}
    return ffn | {f"{name}.norms.{i}": (CHANNELS,) for i in range(norms)}


def layers():
    """mmdetection's layers that have a weight and a bias, by hand, and the weights' shapes."""
    side = (CHANNELS, CHANNELS)
    found = {"memory_trans_fc": side, "memory_trans_norm": side[:1], "decoder.norm": side[:1]}
    found |= {f"decoder.ref_point_head.layers.{i}": (CHANNELS, CHANNELS * (2 - i)) for i in (0, 1)}
    for i in range(ENCODER):
        found |= attention(f"encoder.layers.{i}.self_attn") | layer(f"encoder.layers.{i}", 2)
    for i in range(DECODER):
        found |= attention(f"decoder.layers.{i}.cross_attn") | layer(f"decoder.layers.{i}", 3)
        found[f"decoder.layers.{i}.self_attn.attn.out_proj"] = side
    for i in range(DECODER + 1):
        found[f"bbox_head.cls_branches.{i}"] = (CLASSES, CHANNELS)
        rows = {0: CHANNELS, 2: CHANNELS, 4: 4}
        found |= {f"bbox_head.reg_branches.{i}.{j}": (n, CHANNELS) for j, n in rows.items()}
    for i in range(LEVELS):
        name = f"convs.{i}" if i < 3 else "extra_convs.0"
        found[f"neck.{name}.gn"] = (CHANNELS,)
    return found


def conv_shape(name):
    if name == "stem":
        return WIDTH, 3, 7, 7
    stage, block, part = name.split("/")
    inner = WIDTH * 2 ** (int(stage[3]) - 2)
    first = inner if stage == "res2" else 2 * inner
    inputs = first if block == "block0" else 4 * inner
    shapes = {"shortcut": (4 * inner, inputs, 1, 1), "conv1": (inner, inputs, 1, 1)}
    return (shapes | {"conv2": (inner, inner, 3, 3), "conv3": (4 * inner, inner, 1, 1)})[part]


@functools.cache
def mmdet():
    """A random DINO of the smallest size in mmdetection's layout. Its norms are folded already."""
    rng = np.random.default_rng(0)

    def drawn(*shape):
        return rng.uniform(-1, 1, shape).astype(np.float32)

    tensors = {"level_embed": drawn(LEVELS, CHANNELS)}
    tensors["query_embedding.weight"] = drawn(QUERIES, CHANNELS)
    tensors["dn_query_generator.label_embedding.weight"] = drawn(CLASSES, CHANNELS)
    for name, shape in layers().items():
        tensors |= {f"{name}.weight": drawn(*shape), f"{name}.bias": drawn(*shape[:1])}
    for i in range(DECODER):
        name = f"decoder.layers.{i}.self_attn.attn.in_proj"
        tensors |= {f"{name}_weight": drawn(3 * CHANNELS, CHANNELS)}
        tensors |= {f"{name}_bias": drawn(3 * CHANNELS)}
    for i, inputs in enumerate((8 * WIDTH, 16 * WIDTH, 32 * WIDTH)):
        tensors[f"neck.convs.{i}.conv.weight"] = drawn(CHANNELS, inputs, 1, 1)
    tensors["neck.extra_convs.0.conv.weight"] = drawn(CHANNELS, 32 * WIDTH, 3, 3)
    for name in conv_names():
        conv, norm = torchvision_prefixes(name, "backbone.")
        shape = conv_shape(name)
        tensors[f"{conv}.weight"] = drawn(*shape)
        tensors |= {f"{norm}.{part}": drawn(*shape[:1]) for part in ("weight", "bias")}
        tensors[f"{norm}.running_mean"] = np.zeros(shape[:1], np.float32)
        tensors[f"{norm}.running_var"] = np.full(shape[:1], 1 - 1e-5, np.float32)
    return tensors


# mmdetection's names -> those of DINO's authors.
_OFFICIAL = (
    (r"backbone\.", r"backbone.0.body."),
    (r"neck\.convs\.(\d)\.conv", r"input_proj.\1.0"),
    (r"neck\.convs\.(\d)\.gn", r"input_proj.\1.1"),
    (r"neck\.extra_convs\.0\.conv", r"input_proj.3.0"),
    (r"neck\.extra_convs\.0\.gn", r"input_proj.3.1"),
    (r"level_embed", r"transformer.level_embed"),
    (r"query_embedding", r"transformer.tgt_embed"),
    (r"dn_query_generator\.label_embedding", r"label_enc"),
    (r"memory_trans_fc", r"transformer.enc_output"),
    (r"memory_trans_norm", r"transformer.enc_output_norm"),
    (r"bbox_head\.cls_branches\.2", r"transformer.enc_out_class_embed"),
    (r"bbox_head\.cls_branches", r"class_embed"),
    (r"bbox_head\.reg_branches\.2\.(\d)", lambda m: f"transformer.enc_out_bbox_embed.{half(m[1])}"),
    (r"bbox_head\.reg_branches\.(\d)\.(\d)", lambda m: f"bbox_embed.{m[1]}.{half(m[2])}"),
    (r"ffn\.layers\.0\.0", r"linear1"),
    (r"ffn\.layers\.1", r"linear2"),
    (r"self_attn\.attn\.", r"self_attn."),
    (r"encoder\.layers\.(\d)\.norms\.(\d)", lambda m: f"encoder.layers.{m[1]}.norm{int(m[2]) + 1}"),
    (r"decoder\.layers\.(\d)\.norms\.0", r"decoder.layers.\1.norm2"),
    (r"decoder\.layers\.(\d)\.norms\.1", r"decoder.layers.\1.norm1"),
    (r"decoder\.layers\.(\d)\.norms\.2", r"decoder.layers.\1.norm3"),
    (r"^((en|de)coder\.)", r"transformer.\1"),
)


# mmdetection's names -> detrex's.
_DETREX = (
    (r"backbone\.conv1", r"backbone.stem.conv1"),
    (r"backbone\.bn1", r"backbone.stem.conv1.norm"),
    (r"backbone\.layer(\d)", lambda m: f"backbone.res{int(m[1]) + 1}"),
    (r"(backbone\.res\d\.\d\.)bn(\d)", r"\1conv\2.norm"),
    (r"downsample\.0", r"shortcut"),
    (r"downsample\.1", r"shortcut.norm"),
    (r"(neck\..*)\.gn", r"\1.norm"),
    (r"level_embed", r"transformer.level_embeds"),
    (r"query_embedding", r"transformer.tgt_embed"),
    (r"dn_query_generator\.label_embedding", r"label_enc"),
    (r"memory_trans_fc", r"transformer.enc_output"),
    (r"memory_trans_norm", r"transformer.enc_output_norm"),
    (r"bbox_head\.cls_branches", r"class_embed"),
    (r"bbox_head\.reg_branches\.(\d)\.(\d)", lambda m: f"bbox_embed.{m[1]}.{half(m[2])}"),
    (r"self_attn", r"attentions.0"),
    (r"cross_attn", r"attentions.1"),
    (r"\.ffn\.", r".ffns.0."),
    (r"^((en|de)coder\.)", r"transformer.\1"),
)


def half(index):
    return f"layers.{int(index) // 2}"


def renamed(rules):
    """mmdetection's tensors under other names."""
    tensors = {}
    for name, value in mmdet().items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        tensors[name] = value
    return tensors


@functools.cache
def detrex():
    """The same network as detrex names it: with biases in the neck, and the heads that the decoder
    holds once more."""
    tensors, rng = renamed(_DETREX), np.random.default_rng(1)
    for i in range(LEVELS):
        name = f"neck.convs.{i}" if i < 3 else "neck.extra_convs.0"
        tensors[f"{name}.conv.bias"] = rng.uniform(-1, 1, CHANNELS).astype(np.float32)
    heads = [name for name in tensors if name.startswith(("class_embed.", "bbox_embed."))]
    assert len(heads) == 8 * (DECODER + 1)
    return tensors | {f"transformer.decoder.{name}": tensors[name] for name in heads}


@functools.cache
def official():
    """The same network as its authors name it: with biases in the neck, a further row of the label
    embedding, and the heads that the decoder holds once more."""
    tensors = renamed(_OFFICIAL)
    rng = np.random.default_rng(1)
    for i in range(LEVELS):
        tensors[f"input_proj.{i}.0.bias"] = rng.uniform(-1, 1, CHANNELS).astype(np.float32)
    labels = tensors["label_enc.weight"]
    tensors["label_enc.weight"] = np.concatenate([labels, np.ones((1, CHANNELS), np.float32)])
    heads = [name for name in tensors if name.startswith(("class_embed.", "bbox_embed."))]
    assert len(heads) == 8 * DECODER
    return tensors | {f"transformer.decoder.{name}": tensors[name] for name in heads}

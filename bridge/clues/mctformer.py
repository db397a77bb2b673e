"""MCTformer-V2 as a source of clues (Xu et al., CVPR 2022, arXiv 2203.02891).

The network is WeakTr's without the fusion (WeakTr grew out of it), so the checkpoint has WeakTr's
keys less `adaptive_attention_fusion.*`, and `bridge.clues.weaktr_net` computes it: coarse CAM =
ReLU of the 3 x 3 head; cross maps = class-to-patch attention; fine CAM = patch-to-patch attention,
averaged over all heads and layers, applied once to (class-to-patch attention averaged over heads
and the last layers) * coarse CAM. Mean or sum of maps does not matter: every map is min-max
normalised.

What we do not know: WeakSAM does not say how it took three kinds of maps from MCTformer, nor which
checkpoint; this is the reading of docs/provenance/proposals.md, section 5. MCTformer's code has no
licence and was not read, so the resized position embedding, the unused final norm, class logits
as the mean of the class tokens, and views of 1, 0.8 and 1.2 are WeakTr's. V1 (no 3 x 3 head) and
MCTformer+ are not read.
"""

from dataclasses import replace
from pathlib import Path

from bridge.clues.weaktr import MISFITS, WeakTr, read_config
from bridge.weights.checkpoints import fitted, read_tensors
from weaksam_jax.errors import BadInput, BadSetting

LAST_LAYERS = 3  # our choice; the paper fuses the class-to-patch attention of a few last layers
HINT = "give an MCTformer-V2 checkpoint (DeiT-S with class tokens and a 3 x 3 convolution head)"


def load_mctformer(path: str | Path, last_layers: int = LAST_LAYERS) -> WeakTr:
    """An MCTformer-V2 in evaluation mode; `bridge.clues.weaktr.WeakTrClues` makes clues of it.

    path: `.pth` (also wrapped in `model`, or with the prefix `module.`) or `.safetensors`; classes
    and sizes are read off the names and shapes. last_layers: those whose class-to-patch attention
    is fused with the coarse CAM (fewer in a shallower network). Raises `BadInput`, naming the keys,
    when something is missing, left over or of another shape.
    """
    state, metadata = read_tensors(path)
    try:
        config = read_config(state, metadata, "uniform")
    except (*MISFITS, BadSetting) as error:
        raise BadInput(path, f"is no MCTformer-V2 checkpoint ({error})", HINT) from error
    config = replace(config, last_layers=min(last_layers, config.depth))
    return fitted(lambda: WeakTr(config), state, path, hint=HINT)

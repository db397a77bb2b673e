"""WeakTr's start from ImageNet weights: DeiT (Touvron et al., ICML 2021) with one class token."""

from pathlib import Path

import torch

from bridge.clues.weaktr_net import WeakTr
from bridge.weights.checkpoints import check_keys, read_tensors
from weaksam_jax.errors import BadInput
from weaksam_jax.supervision import saw

DEIT = saw(["tags"], "ImageNet classes, by its layout: DeiT")  # what it has seen
DEIT_HINT = "give the ImageNet weights of DeiT-S, deit_small_patch16_224-cd65a155.pth"


def start_from_deit(model: WeakTr, path: str | Path) -> None:
    """Fills the transformer from published DeiT weights (one class token, 1000-way head).

    The class token and its row of the position embedding are copied for every class; the head is
    left out, and convolution head and fusion keep their random start (WeakTr's recipe). Raises
    `BadInput` naming keys that are missing or do not fit, also for a network with more class tokens
    than one.
    """
    state, _ = read_tensors(path)
    tokens = state.get("cls_token")
    if tokens is not None and tokens.shape[:-1] != (1, 1):
        raise BadInput(path, f"has cls_token {tuple(tokens.shape)}, no single one", DEIT_HINT)
    wanted = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(("head.", "adaptive_attention_fusion."))
    }
    classes = model.config.classes
    table = state.get("pos_embed")
    if tokens is not None and table is not None and table.ndim == 3:
        rows = [table[:, :1].expand(-1, classes, -1), table[:, 1:]]
        state |= {
            "cls_token": tokens.expand(-1, classes, -1),
            "pos_embed": torch.cat(rows, dim=1),
        }
    chosen = {name: state[name] for name in wanted if name in state}
    check_keys(path, wanted, chosen, hint=DEIT_HINT)
    model.load_state_dict(chosen, strict=False)

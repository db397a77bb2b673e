"""Training the linear head of `bridge.clues.lite_cam` on image tags."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bridge.clues.lite_cam import LiteBackbone, LiteConfig, channels_last, lite_input
from bridge.weights.checkpoints import read_tensors, save_tensors
from bridge.weights.lite0 import SEEN as LITE0
from weaksam_jax.data.content import content_hash
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagSplit
from weaksam_jax.files import fingerprint, is_whole, read_arrays, write_arrays
from weaksam_jax.progress import Bar, progress_bar
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.settings import to_plain
from weaksam_jax.supervision import trained

SHARD = 64  # images per file of cached features


def train_lite_head(train: TagSplit, config: LiteConfig, run: RunFolder, seed: int = 0) -> Path:
    """Trains the head on tags and returns the run's file of weights for `load_lite_cam`.

    Mean-pooled features are cached beside it (fp16, one atomic file for 64 images), so that a
    killed run continues where it was and ends in the same bits. The problem is convex and solved
    to convergence; `seed` is only part of the common trainers' signature.
    """
    recipe = to_plain(config)
    key = fingerprint([_split_key(train), recipe, seed])
    final = run.clue_network("lite_cam")
    if is_whole(final) and read_tensors(final)[1].get("fingerprint") == key:
        return final
    features = torch.from_numpy(pooled_features(train, config, run.clues / "features")).float()
    labels = torch.zeros(len(features), len(train.classes))
    for row, record in zip(labels, train.records, strict=True):
        row[list(record.tags)] = 1
    weight, bias = fit_head(features, labels, config.penalty)
    seen = trained(["tags"], f"tags of {train.dataset} {train.split}", LITE0)
    metadata = {"fingerprint": key, "settings": json.dumps(recipe), **seen.metadata()}
    save_tensors(final, {"weight": weight, "bias": bias}, metadata)
    return final


def pooled_features(train: TagSplit, config: LiteConfig, folder: Path) -> np.ndarray:
    """Mean-pooled features float16 `[images, 1280]` of a split, cached in `folder` by the content
    of the images' files."""
    starts = range(0, len(train.records), SHARD)
    paths = [folder / f"{start // SHARD:05d}.safetensors" for start in starts]
    backbone = None
    shards = []
    bar = progress_bar(None, "Lite0 features", total=len(train.records))
    with bar:
        for start, path in zip(starts, paths, strict=True):
            records = train.records[start : start + SHARD]
            key = fingerprint([[content_hash(r.path) for r in records], config.long_side])
            if not (is_whole(path) and read_arrays(path)[1].get("fingerprint") == key):
                backbone = backbone or LiteBackbone()
                rows = np.stack(
                    [_pooled(backbone, r.path, config.long_side, bar=bar) for r in records]
                )
                write_arrays(path, {"features": rows}, {"fingerprint": key})
            else:
                bar.update(len(records))
            shards.append(read_arrays(path)[0]["features"])
    return np.concatenate(shards)


@torch.inference_mode()
def _pooled(backbone: LiteBackbone, path: Path, long_side: int, bar: Bar) -> np.ndarray:
    deep, _ = backbone(channels_last(lite_input(load_image(path), long_side)[None]))
    bar.update()
    return deep.mean((-2, -1))[0].numpy().astype(np.float16)


def _split_key(train: TagSplit) -> list:
    images = [(r.image_id, content_hash(r.path), r.tags) for r in train.records]
    return [train.dataset, train.split, train.classes, images]


def fit_head(features: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Logistic regression per class: weight float32 `[C, D]` and bias `[C]` of features `[N, D]`.

    Minimises the mean binary cross-entropy plus penalty / 2 times the squared weights, for
    features divided by their standard deviation; the weights returned are for raw features.
    """
    features, labels = features.double(), labels.double()
    mean = features.mean(0)
    # One image has no deviation (and torch says NaN): its tags are then learned by the bias alone.
    spread = features.std(0) if len(features) > 1 else torch.zeros_like(mean)
    deviation = spread.clamp_min(1e-6)
    scaled = (features - mean) / deviation
    weight = torch.zeros(labels.shape[1], features.shape[1], dtype=torch.float64)
    bias = torch.zeros(labels.shape[1], dtype=torch.float64)
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.binary_cross_entropy_with_logits(scaled @ weight.T + bias, labels, reduction="sum")
        loss = loss / len(features) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    weight = weight.detach() / deviation
    return weight.float(), (bias.detach() - weight @ mean).float()

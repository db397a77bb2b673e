"""Training WeakTr on image tags alone."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from bridge.clues.tag_samples import TagSamples, epoch_batches
from bridge.clues.weaktr_net import WeakTr
from bridge.clues.weaktr_recipe import WeakTrRecipe, learning_rate
from bridge.clues.weaktr_start import DEIT, DEIT_HINT, start_from_deit
from bridge.weights.checkpoints import read_tensors, save_tensors
from weaksam_jax import runlog
from weaksam_jax.data.content import content_hash
from weaksam_jax.data.records import TagSplit
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import file_fingerprint, fingerprint, is_whole
from weaksam_jax.progress import Bar, progress_bar
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.settings import to_plain
from weaksam_jax.supervision import trained


def train_weaktr(train: TagSplit, recipe: WeakTrRecipe, run: RunFolder, seed: int) -> Path:
    """Trains on tags and returns the run's file of weights, which `load_weaktr` reads.

    Each epoch ends in an atomic checkpoint and a line of the run's log; data order, crops
    and noise depend on (seed, epoch, image) only, so a killed run ends in the same bits. On a GPU
    where there is one, then in mixed precision (float16 with a scaled loss, as in the official
    code). A finished run of the same settings, images and seed is not repeated. Raises `BadInput`
    for an unreadable image, checkpoint or `init`, and for a split with fewer images than a batch.
    """
    final, checkpoint = run.clue_network("weaktr"), run.clues / "checkpoint.safetensors"
    key = _fingerprint(train, recipe, seed)
    if is_whole(final) and read_tensors(final)[1].get("fingerprint") == key:
        return final
    check_images(train, recipe)
    with _deterministic():
        model = _run(train, recipe, run, seed=seed, key=key)
    save_tensors(final, model.state_dict(), _metadata(train, recipe, key))
    checkpoint.unlink(missing_ok=True)
    return final


def check_images(train: TagSplit, recipe: WeakTrRecipe) -> None:
    """`BadInput` for a split with fewer images than a batch."""
    if len(train.records) < recipe.batch_size:
        problem = f"has {len(train.records)} images, fewer than a batch of {recipe.batch_size}"
        hint = "give more images, or a smaller weaktr.batch_size"
        raise BadInput(f"{train.dataset}/{train.split}", problem, hint)


def _metadata(train: TagSplit, recipe: WeakTrRecipe, key: str) -> dict[str, str]:
    """What the file's keys and shapes do not tell."""
    start = None if recipe.init is None else DEIT
    return {
        "fingerprint": key,
        "heads": str(recipe.heads),
        "fusion": recipe.fusion,
        "classes": ";".join(train.classes),
        **trained(["tags"], f"tags of {train.dataset} {train.split}", start).metadata(),
        **({} if recipe.reach is None else {"reach": str(recipe.reach)}),
    }


def weaktr_loss(model: WeakTr, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The three multi-label soft-margin losses and their sum "loss" (WeakTr, section 3.3).

    images `[B, 3, H, W]` normalised; labels float `[B, C]`. "fine" reaches only the fusion weights.
    """
    out = model.maps(images)
    parts = {
        name: F.multilabel_soft_margin_loss(getattr(out, name + "_logits").float(), labels)
        for name in ("class", "coarse", "fine")
    }
    return {"loss": sum(parts.values()), **parts}


def tag_map(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean average precision of tags. scores, labels (0/1): `[images, C]`; absent classes left out.

    Average precision is the area under the step-wise precision-recall curve.
    """
    present = np.flatnonzero(labels.any(0))
    return float(np.mean([average_precision_score(labels[:, c], scores[:, c]) for c in present]))


@dataclass
class _State:
    """What training changes, and its checkpoint `path`, which is of the run `key` alone."""

    model: WeakTr
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    path: Path
    key: str

    @classmethod
    def fresh(cls, recipe: WeakTrRecipe, classes: int, path: Path, key: str) -> "_State":
        """The start of training, on the GPU where there is one."""
        model = WeakTr(recipe.config(classes)).train()
        if recipe.init is not None:
            start_from_deit(model, recipe.init)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(device)
        scaler = torch.amp.GradScaler(device.type, enabled=_mixed_precision(device))
        decay = recipe.weight_decay
        optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=decay)
        return cls(model, optimizer, scaler, path=path, key=key)

    def save(self, epochs: int) -> None:
        """Writes the checkpoint after so many epochs."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        metadata = {"fingerprint": self.key, "epochs": str(epochs)}
        save_tensors(
            self.path, tensors, metadata | {"scaler": json.dumps(self.scaler.state_dict())}
        )

    def restore(self) -> int:
        """Puts the checkpoint's state back; finished epochs (0: no checkpoint of this very run)."""
        if not self.path.exists():
            return 0
        tensors, metadata = read_tensors(self.path)
        if metadata.get("fingerprint") != self.key:
            return 0
        try:
            return self._put_back(tensors, metadata)
        except (KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0][:160]
            hint = "move it elsewhere: the training starts again then"
            raise BadFile(
                self.path, f"is no checkpoint of this training ({first})", hint
            ) from error

    def _put_back(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> int:
        weights = {k: v for k, v in tensors.items() if k.startswith("model.")}
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items()})
        state: dict[int, dict[str, Tensor]] = {}
        for name in tensors.keys() - weights.keys():
            _, index, part = name.split(".")
            state.setdefault(int(index), {})[part] = tensors[name]
        epochs = int(metadata["epochs"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.scaler.load_state_dict(json.loads(metadata.get("scaler", "{}")))
        return epochs


def _mixed_precision(device: torch.device) -> bool:
    return device.type == "cuda"


def _run(train: TagSplit, recipe: WeakTrRecipe, run: RunFolder, seed: int, key: str) -> WeakTr:
    """All epochs that are still to do."""
    torch.manual_seed(seed)
    state = _State.fresh(recipe, len(train.classes), run.clues / "checkpoint.safetensors", key=key)
    done = state.restore()
    log, steps = run.log, len(train.records) // recipe.batch_size
    runlog.forget(log, "weaktr", done * steps)
    s = recipe
    shown = {"crop": s.crop, "min_scale": s.min_scale, "augment": s.augment, "jitter": s.jitter}
    samples = TagSamples(train, seed=seed, **shown)
    batches = epoch_batches(
        samples, batch_size=s.batch_size, first_epoch=done, epochs=s.epochs, workers=s.workers
    )
    images = steps * s.batch_size
    bar = progress_bar(None, "WeakTr", total=s.epochs * images, initial=done * images)
    with bar:
        for epoch in range(done, s.epochs):
            # Drop-path is the only user of torch's own generator.
            torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
            runlog.append(log, _epoch(state, batches, recipe, epoch=epoch, steps=steps, bar=bar))
            state.save(epoch + 1)
    return state.model


def _epoch(
    state: _State,
    batches: Iterator[tuple[Tensor, Tensor]],
    recipe: WeakTrRecipe,
    epoch: int,
    steps: int,
    bar: Bar,
) -> dict:
    """One pass over the images; the line for the log (mean losses)."""
    began, totals = time.monotonic(), dict[str, float]()
    for step in range(steps):
        losses = _step(state, next(batches), learning_rate(recipe, epoch + step / steps))
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.item() / steps
        if not math.isfinite(totals["loss"]):
            raise FloatingPointError(f"WeakTr: the loss is not finite in epoch {epoch + 1}")
        bar.update(recipe.batch_size)
    bar.set_postfix(loss=f"{totals['loss']:.3f}")
    speed = steps * recipe.batch_size / (time.monotonic() - began)
    entry = {"stage": "weaktr", "step": (epoch + 1) * steps, "epoch": epoch + 1}
    return {**entry, **totals, "images_per_s": round(speed, 2)}


def _step(state: _State, batch: tuple[Tensor, Tensor], lr: float) -> dict[str, Tensor]:
    """One update of the weights; the losses."""
    device = state.model.cls_token.device
    images, labels = (part.to(device) for part in batch)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast(device.type, torch.float16, enabled=state.scaler.is_enabled()):
        losses = weaktr_loss(state.model, images, labels)
    state.optimizer.zero_grad()
    state.scaler.scale(losses["loss"]).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return losses


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic algorithms of torch, without its (slow) filling of new memory."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def _fingerprint(train: TagSplit, recipe: WeakTrRecipe, seed: int) -> str:
    images = [(r.image_id, content_hash(r.path), r.tags) for r in train.records]
    plain = {k: v for k, v in to_plain(recipe).items() if k != "workers"}
    if recipe.init is not None:
        try:
            plain["init"] = file_fingerprint(recipe.init)
        except BadInput as error:
            raise BadInput(recipe.init, error.problem, DEIT_HINT) from error
    return fingerprint([train.dataset, train.split, train.classes, images, plain, seed])

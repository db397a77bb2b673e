"""Training WeakTr on image tags alone.

`python -m bridge.train_weaktr --data PATH --deit FILE --out DIR`
"""

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from bridge.clues.tag_samples import TagSamples, epoch_batches
from bridge.clues.weaktr import WeakTr, WeakTrConfig, check_keys, read_tensors, save_tensors
from weaksam_jax import runlog
from weaksam_jax.data.datasets import open_tags, split_names
from weaksam_jax.data.records import TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import file_fingerprint, fingerprint

DEIT_CURE = "give the ImageNet weights of DeiT-S, deit_small_patch16_224-cd65a155.pth"


@dataclass(frozen=True)
class WeakTrSettings:
    """Network sizes as in `WeakTrConfig`, and the recipe.

    crop: side in pixels of the training crops, a multiple of patch. min_scale: least share of the
    image's area in a crop. augment: "light" (crop, mirror, colour jitter) or "timm" (crop, mirror,
    RandAugment, random erasing); jitter: strength of the light colour jitter. lr: peak rate, used
    as it is: warmup_epochs from warmup_lr, then a cosine to min_lr. init: file with published DeiT
    weights to start from (None: random). workers: processes that decode and augment.
    """

    dim: int = 384
    heads: int = 6
    depth: int = 12
    patch: int = 16
    fusion: str = "v3"
    stem: str = "patch"
    drop_path: float = 0.1
    reach: int | None = None
    crop: int = 224
    min_scale: float = 0.08
    augment: str = "timm"
    jitter: float = 0.4
    epochs: int = 60
    warmup_epochs: int = 5
    batch_size: int = 64
    lr: float = 6e-4 * 64 / 512
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    weight_decay: float = 0.03
    init: Path | None = None
    workers: int = 2

    @classmethod
    def paper(
        cls,
        init: Path | None = None,
        lr_at_512: float = 6e-4,
        batch_size: int = 64,
        epochs: int = 60,
        workers: int = 2,
    ) -> "WeakTrSettings":
        """The released WeakTr recipe, from the file `init` of ImageNet DeiT-S.

        lr_at_512: the peak rate of a batch of 512, scaled to batch_size; released: 6e-4 for VOC12,
        2e-4 for COCO14 (notes on clues, section 1.4).
        """
        lr = lr_at_512 * batch_size / 512
        return cls(init=init, lr=lr, batch_size=batch_size, epochs=epochs, workers=workers)

    @classmethod
    def mini(cls) -> "WeakTrSettings":
        """From scratch on a few hundred drawn images in little more than a minute of two cores."""
        return cls(
            dim=64,
            heads=4,
            depth=3,
            patch=8,
            stem="conv",
            drop_path=0.0,
            reach=1,
            crop=112,
            min_scale=0.5,
            augment="light",
            jitter=0.1,
            epochs=36,
            warmup_epochs=2,
            batch_size=10,
            lr=1.5e-3,
            weight_decay=0.05,
        )

    def config(self, classes: int) -> WeakTrConfig:
        """The network for that many classes."""
        grid = self.crop // self.patch
        return WeakTrConfig(
            classes,
            self.dim,
            self.heads,
            self.depth,
            self.patch,
            grid,
            self.fusion,
            self.stem,
            self.drop_path,
            self.reach,
        )


def train_weaktr(train: TagSplit, settings: WeakTrSettings, folder: Path, seed: int) -> Path:
    """Trains on tags and returns `folder/weaktr.safetensors`, which `load_weaktr` reads.

    Each epoch ends in an atomic checkpoint and a line of `folder/../log.jsonl`; data order, crops
    and noise depend on (seed, epoch, image) only, so a killed run ends in the same bits. On a GPU
    where there is one, then in mixed precision (float16 with a scaled loss, as released).
    A finished run of the same settings, images and seed is not repeated. Raises `BadInput` for an
    unreadable image, checkpoint or `init`, and for a split with fewer images than a batch.
    """
    folder = Path(folder)
    final, checkpoint = folder / "weaktr.safetensors", folder / "checkpoint.safetensors"
    key = _fingerprint(train, settings, seed)
    if final.exists() and read_tensors(final)[1].get("fingerprint") == key:
        return final
    if len(train.records) < settings.batch_size:
        problem = f"has {len(train.records)} images, fewer than a batch of {settings.batch_size}"
        raise BadInput(f"{train.dataset}/{train.split}", problem, "give more images")
    with _deterministic():
        model = _run(train, settings, folder, seed, key)
    metadata = {
        "fingerprint": key,
        "heads": str(settings.heads),
        "fusion": settings.fusion,
        "classes": ";".join(train.classes),
        **({} if settings.reach is None else {"reach": str(settings.reach)}),
    }
    save_tensors(final, model.state_dict(), metadata)
    checkpoint.unlink(missing_ok=True)
    return final


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


def learning_rate(settings: WeakTrSettings, epoch: float) -> float:
    """The rate at a (fractional) epoch: linear warm-up, then a cosine down to min_lr.

    timm's scheduler, which DeiT's training script uses, changes once an epoch and counts the cosine
    from epoch 0, warm-up included: in the middle its rate is a tenth lower (`paper()`, epoch 32:
    3.91e-5 instead of 4.34e-5). Which of the two WeakTr's figures are from is not in the notes.
    """
    if epoch < settings.warmup_epochs:
        share = epoch / settings.warmup_epochs
        return settings.warmup_lr + share * (settings.lr - settings.warmup_lr)
    share = (epoch - settings.warmup_epochs) / max(1, settings.epochs - settings.warmup_epochs)
    return settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * share)) / 2


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


def _fingerprint(train: TagSplit, settings: WeakTrSettings, seed: int) -> str:
    images = [(r.image_id, r.width, r.height, r.tags) for r in train.records]
    recipe = {k: v for k, v in dataclasses.asdict(settings).items() if k != "workers"}
    if settings.init is not None:
        try:
            recipe["init"] = file_fingerprint(settings.init)
        except OSError as error:
            raise BadInput(
                settings.init, f"cannot be read ({error.strerror})", DEIT_CURE
            ) from error
    return fingerprint([train.dataset, train.split, train.classes, images, recipe, seed])


def _run(train: TagSplit, settings: WeakTrSettings, folder: Path, seed: int, key: str) -> WeakTr:
    """All epochs that are still to do."""
    torch.manual_seed(seed)
    model = WeakTr(settings.config(len(train.classes))).train()
    if settings.init is not None:
        start_from_deit(model, settings.init)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=_mixed_precision(device))
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, weight_decay=settings.weight_decay
    )
    checkpoint = folder / "checkpoint.safetensors"
    done = _restore(checkpoint, key, model, optimizer, scaler)
    log, steps = folder.parent / "log.jsonl", len(train.records) // settings.batch_size
    runlog.forget(log, "weaktr", done * steps)
    s = settings
    samples = TagSamples(train, s.crop, s.min_scale, s.augment, s.jitter, seed)
    batches = epoch_batches(samples, settings.batch_size, done, settings.epochs, settings.workers)
    images = steps * settings.batch_size
    bar = tqdm(total=settings.epochs * images, initial=done * images, desc="WeakTr", unit="image")
    with bar:
        for epoch in range(done, settings.epochs):
            # Drop-path is the only user of torch's own generator.
            torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
            entry = _epoch(model, optimizer, scaler, batches, settings, epoch, images, bar)
            runlog.append(log, entry)
            _save_checkpoint(checkpoint, key, model, optimizer, scaler, epoch + 1)
    return model


def _mixed_precision(device: torch.device) -> bool:
    return device.type == "cuda"


def _epoch(
    model: WeakTr,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Iterator[tuple[Tensor, Tensor]],
    settings: WeakTrSettings,
    epoch: int,
    images: int,
    bar: tqdm,
) -> dict:
    """One pass over the images; the line for the log (mean losses)."""
    began, steps = time.monotonic(), images // settings.batch_size
    device = model.cls_token.device
    totals: dict[str, float] = {}
    for step in range(steps):
        pictures, labels = (part.to(device) for part in next(batches))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, epoch + step / steps)
        with torch.autocast(device.type, torch.float16, enabled=scaler.is_enabled()):
            losses = weaktr_loss(model, pictures, labels)
        optimizer.zero_grad()
        scaler.scale(losses["loss"]).backward()
        scaler.step(optimizer)
        scaler.update()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.item() / steps
        if not math.isfinite(totals["loss"]):
            raise FloatingPointError(f"WeakTr: the loss is not finite in epoch {epoch + 1}")
        bar.update(settings.batch_size)
    bar.set_postfix(loss=f"{totals['loss']:.3f}")
    rate = images / (time.monotonic() - began)
    entry = {"stage": "weaktr", "step": (epoch + 1) * steps, "epoch": epoch + 1}
    return {**entry, **totals, "images_per_s": round(rate, 2)}


def _save_checkpoint(
    path: Path,
    key: str,
    model: WeakTr,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    epochs: int,
) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
    metadata = {"fingerprint": key, "epochs": str(epochs)}
    save_tensors(path, tensors, metadata | {"scaler": json.dumps(scaler.state_dict())})


def _restore(
    path: Path,
    key: str,
    model: WeakTr,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> int:
    """Puts the checkpoint's state back; finished epochs (0: no checkpoint of this very run)."""
    if not path.exists():
        return 0
    tensors, metadata = read_tensors(path)
    if metadata.get("fingerprint") != key:
        return 0
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, part = name.split(".")
            state.setdefault(int(index), {})[part] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    scaler.load_state_dict(json.loads(metadata.get("scaler", "{}")))
    return int(metadata["epochs"])


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
        raise BadInput(path, f"has cls_token {tuple(tokens.shape)}, no single one", DEIT_CURE)
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
    check_keys(path, wanted, chosen, DEIT_CURE)
    model.load_state_dict(chosen, strict=False)


def main(argv: list[str] | None = None) -> None:
    """Command line: see the head of this file."""

    def command(
        data: Path,
        deit: Path,
        out: Path,
        split: str | None = None,
        lr: float = 6e-4,
        batch_size: int = 64,
        epochs: int = 60,
        workers: int = 2,
        seed: int = 0,
    ) -> None:
        """Trains WeakTr (DeiT-S) on the tags of a data set; the same command resumes.

        Args:
            data: a data set: VOCdevkit, COCO folder, or images/ with tags.csv.
            deit: ImageNet weights to start from, deit_small_patch16_224-cd65a155.pth.
            out: the network goes to OUT/clues/weaktr.safetensors, its log to OUT/log.jsonl.
            split: name of the split [the data set's own training split].
            lr: peak rate of a batch of 512 images, scaled to the batch size; COCO14 used 2e-4.
            batch_size: images a step.
            epochs: passes over the images.
            workers: processes that decode and augment.
            seed: of the order, the augmentation and the new weights.
        """
        # The released labels have the classes of difficult objects, too.
        tags = open_tags(data, split or split_names(data)["train"], difficult=True)
        settings = WeakTrSettings.paper(deit, lr, batch_size, epochs, workers)
        print(train_weaktr(tags, settings, out / "clues", seed))

    about = __doc__.splitlines()[0]
    tyro.cli(command, args=argv, description=about, prog="python -m bridge.train_weaktr")


if __name__ == "__main__":
    from weaksam_jax.cli import entry_point

    raise SystemExit(entry_point(main))

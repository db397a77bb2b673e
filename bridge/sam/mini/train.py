"""Train a sam_mini on procedural scenes and on segment hierarchies of unlabelled photos.

    python -m bridge.sam.mini.train --name sam_mini --minutes 20 --out runs/sam_mini

Every run continues the checkpoint in --out, so that a budget can be spent in several
stretches: --minutes is the whole budget (it sets the cosine schedule), --stretch the length
of this run; a checkpoint is written every five minutes. The last weights, averaged over
the steps, are written to --out as NAME.safetensors. Photos are optional: --photos takes the
folder that `python -m bridge.sam.mini.photos` wrote.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import bridge.runtime.torchvision_ops  # noqa: F401  (before segment_anything: see there)

# isort: split
from segment_anything.modeling import Sam

from bridge.sam.mini.batches import Batch, Pool, collate
from bridge.sam.mini.losses import hard_iou, mask_cost, nested_loss
from bridge.sam.mini.model import SEEN, VARIANTS, build_sam_mini, save_weights
from bridge.sam.mini.photos import PhotoFolder
from bridge.sam.mini.scenes import draw_scene
from weaksam_jax.files import atomic_path

FIRST_SCENE = 1_000_000  # seeds below are held out for measuring and tests

BETAS = 0.9, 0.95  # of AdamW; a short memory of squares for a short training
SAVE_EVERY = 300  # seconds between two checkpoints


def normalise(sam: Sam, batch: Batch) -> Tensor:
    """Network input [B, 3, S, S]: SAM's normalisation, zero on the padding."""
    x = batch.image.permute(0, 3, 1, 2).float()
    return (x - sam.pixel_mean) / sam.pixel_std * batch.inside[:, None]


def predict(sam: Sam, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One encoding per image, two decodings: points and boxes together, then several points.

    Both of the first kinds are two sparse tokens long, which is why they share a pass.
    Returns logits [B, n, 4, S/stride, S/stride] and IoU [B, n, 4], then those of the clicks.
    """
    encoder, decoder = sam.prompt_encoder, sam.mask_decoder
    embedding = sam.image_encoder(normalise(sam, batch))
    images = len(batch.image)

    def split(value: Tensor) -> Tensor:
        return value.unflatten(0, (images, -1))

    def prompt(points: Tensor | None, boxes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sparse [B, n, t, D] and dense [B, n, D, h, w] of n prompts per image."""
        labelled = None
        if points is not None:
            flat = points.flatten(0, 1)
            labelled = flat, torch.ones(flat.shape[:2])
        sparse, dense = encoder(labelled, None if boxes is None else boxes.flatten(0, 1), None)
        return split(sparse), split(dense)

    with torch.autocast("cpu", enabled=False):  # half precision blurs position codes
        by_point, by_box = prompt(batch.points, None), prompt(None, batch.boxes)
        short = [torch.cat(pair, dim=1) for pair in zip(by_point, by_box, strict=True)]
        several, places = prompt(batch.clicks, None), encoder.get_dense_pe()
    outputs = []
    for sparse, dense in (short, several):
        prompts = {
            "sparse_prompt_embeddings": sparse.flatten(0, 1),
            "dense_prompt_embeddings": dense.flatten(0, 1),
        }
        outputs += [split(v.float()) for v in decoder.predict_masks(embedding, places, **prompts)]
    return tuple(outputs)


def loss_of(sam: Sam, batch: Batch, thin: int) -> tuple[Tensor, dict[str, float]]:
    """Mask loss + squared error of the predicted IoU, and figures to print."""
    logits, quality, more_logits, more_quality = predict(sam, batch)
    y, x = batch.phase
    logits, more_logits = (v[..., y::thin, x::thin] for v in (logits, more_logits))
    points = batch.points.shape[1]

    cost = mask_cost(logits[:, :points, 1:].flatten(0, 1), batch.nested.flatten(0, 1))
    held = batch.count.flatten() > 0
    by_point = nested_loss(cost, batch.count.flatten())[held].mean()

    # Token 0 answers prompts that mean one mask: boxes and several points.
    single = torch.cat([logits[:, points:, :1], more_logits[:, :, :1]], dim=1)
    meant = torch.cat([batch.boxed, batch.clicked], dim=1)
    by_single = mask_cost(single.flatten(0, 1), meant.flatten(0, 1)[:, None]).mean()

    # True quality: tokens 1 to 3 with the nearest mask of the image, token 0 with the meant.
    with torch.no_grad():
        nearest = torch.stack(
            [hard_iou(v[:points, 1:], m).amax(2) for v, m in zip(logits, batch.masks, strict=True)]
        )
        each = zip(single.flatten(0, 1), meant.flatten(0, 1), strict=True)
        exact = torch.cat([hard_iou(v[None], m[None])[0, 0] for v, m in each])
    told = torch.cat([quality[:, points:, 0], more_quality[:, :, 0]], dim=1).flatten()
    by_quality = (quality[:, :points, 1:] - nearest).square().mean()
    by_quality = by_quality + (told - exact).square().mean()

    total = by_point + by_single + by_quality
    best = nearest.amax(2).flatten()[held].mean()
    return total, {
        "loss": total.item(),
        "iou_point": best.item(),
        "iou_single": exact.mean().item(),
        "mse": by_quality.item(),
    }


class Average:
    """Exponential moving average of a state_dict, with a short memory at the start."""

    def __init__(self, decay: float = 0.998):
        self.decay, self.tensors, self.steps = decay, {}, 0

    @torch.no_grad()
    def update(self, state: dict[str, Tensor]) -> None:
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (10 + self.steps))
        for key, value in state.items():
            if key in self.tensors and value.is_floating_point():
                self.tensors[key].lerp_(value, weight)
            else:
                self.tensors[key] = value.clone()


def lr_at(progress: float, step: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine over the time budget to 2% of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * cosine)


def copy_fitting(sam: Sam, path: Path) -> None:
    """Start from other weights wherever name and shape agree (another encoder's decoder)."""
    own, other = sam.state_dict(), load_file(path)
    sam.load_state_dict(own | {k: v for k, v in other.items() if fits(own, k, v)})


def fits(own: dict[str, Tensor], key: str, value: Tensor) -> bool:
    return key in own and own[key].shape == value.shape


def make_pools(options: argparse.Namespace, size: int, step: int) -> list[Pool]:
    """Where examples come from: scenes always, photos if given. Numbers go on from `step`."""
    folder = PhotoFolder(options.photos, size) if options.photos else None
    first = FIRST_SCENE + step * options.batch_size
    fills = folder.images() if folder else None
    pools = [Pool(lambda i: draw_scene(i, size, fills), first, options.pool, fresh=options.fresh)]
    if folder:
        pools.append(
            Pool(folder.example, step * options.batch_size, options.pool, fresh=options.fresh)
        )
    return pools


@dataclass
class Training:
    """What a run changes, and its checkpoint. spent: seconds of the budget."""

    sam: Sam
    optimizer: torch.optim.Optimizer
    checkpoint: Path
    average: Average = field(default_factory=Average)
    step: int = 0
    spent: float = 0.0

    def save(self) -> None:
        """Writes the checkpoint."""
        state = {"model": self.sam.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"average": self.average.tensors, "step": self.step, "spent": self.spent}
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def restore(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.sam.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.tensors, self.average.steps = state["average"], state["step"]
        self.step, self.spent = state["step"], state["spent"]

    def advance(self, batch: Batch, lr: float, thin: int, bf16: bool) -> dict[str, float]:
        """One step; its figures."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, figures = loss_of(self.sam, batch, thin)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.sam.state_dict())
        self.step += 1
        return figures


def start(options: argparse.Namespace) -> Training:
    """A fresh run, or the one whose checkpoint lies in `options.out`."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    sam = build_sam_mini(*VARIANTS[options.name]).train()
    optimizer = torch.optim.AdamW(sam.parameters(), lr=options.lr, betas=BETAS, weight_decay=0.02)
    if options.start:
        copy_fitting(sam, Path(options.start))
    run = Training(sam, optimizer, out / "checkpoint.pt")
    run.restore()
    return run


def train(options: argparse.Namespace) -> None:
    """Spend one stretch of the budget; see the module's text."""
    torch.set_num_threads(options.threads)
    _, size, stride = VARIANTS[options.name]
    thin = 2 if stride == 2 else 1
    run = start(options)
    rng = np.random.default_rng([options.seed, run.step])
    pools = make_pools(options, size, run.step)
    shares = [1.0] if len(pools) == 1 else [1 - options.photo_share, options.photo_share]
    begun, before, saved, seen = time.monotonic(), run.spent, run.spent, []
    while run.spent < 60 * options.minutes and run.spent - before < 60 * options.stretch:
        source = rng.choice(len(pools), size=options.batch_size, p=shares)
        examples = [pools[i].take(rng) for i in source]
        batch = collate(rng, examples, stride, thin=thin, rotate=options.rotate)
        lr = lr_at(run.spent / (60 * options.minutes), run.step, options.lr)
        figures = run.advance(batch, lr, thin, bf16=options.bf16)
        run.spent = before + time.monotonic() - begun
        seen.append(list(figures.values()))
        if run.step % 25 == 0:
            show(run, dict(zip(figures, np.mean(seen[-25:], axis=0), strict=True)))
        if run.spent - saved > SAVE_EVERY:
            run.save()
            saved = run.spent
    run.save()
    out = Path(options.out)
    metadata = SEEN[options.name].metadata()
    save_weights(run.average.tensors, out / f"{options.name}.safetensors", metadata)
    print(f"step {run.step}, {run.spent / 60:.1f} of {options.minutes} min spent: {out}")


def show(run: Training, means: dict[str, float]) -> None:
    """Prints a line of progress."""
    text = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
    print(f"step {run.step}  {run.spent / 60:.1f} min  {text}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--name", choices=VARIANTS, default="sam_mini")
    add("--out", required=True, help="folder of the checkpoint and the weights")
    add("--start", help="safetensors of another sam_mini to start from where shapes agree")
    add("--minutes", type=float, default=20, help="whole time budget")
    add("--stretch", type=float, default=1e9, help="minutes of this run at most")
    add("--photos", help="folder of segment hierarchies (bridge.sam.mini.photos)")
    add("--photo-share", type=float, default=0.5, help="share of examples that are photos")
    add("--batch-size", type=int, default=6, help="images per step")
    add("--lr", type=float, default=1.5e-3, help="peak learning rate of AdamW")
    add("--pool", type=int, default=600, help="examples kept in memory for reuse")
    add("--fresh", type=float, default=0.3, help="share of examples drawn anew")
    add("--rotate", action=argparse.BooleanOptionalAction, default=True,
        help="also rotate by 90 degrees and permute colours")  # fmt: skip
    add("--bf16", action=argparse.BooleanOptionalAction, default=True,
        help="bfloat16 autocast (fast where the CPU has AMX)")  # fmt: skip
    add("--threads", type=int, default=1)
    add("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    train(parse())

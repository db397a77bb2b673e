"""DINO's work on the GPU card in plain PyTorch: the two-stage Deformable DETR of transformers.

With iterative refinement, 900 queries, four levels, losses of all decoder layers and a matching by
scipy on the host it is what DINO was made from; its attention is `grid_sample`, as the compiled
kernel cannot be fetched on every machine. It lacks denoising, a loss of the first stage and mixed
queries, and refines the boxes of all tokens where DINO does so for the best ones.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.bench import torch_side
from experiments.bench.gpu_sizes import Sizes, images_of
from experiments.bench.programs import Case, batch_shapes, detector_of, filled
from weaksam_jax.data.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD
from weaksam_jax.detectors import Detector


def dino_step(case: Case, sizes: Sizes) -> Callable[[], float]:
    """A training step: losses of all decoder layers, gradients, AdamW behind a clipped norm."""
    detector, place = detector_of(case), torch_side.device()
    model = network(detector, sizes).to(place).train()
    images, batch = shown(detector, case)
    labels = [targets(batch, i) for i in range(len(images))]
    layers = torch_side.layers(case.precision)
    free, optim = [one for one in model.parameters() if one.requires_grad], detector.config.optim
    adam = torch.optim.AdamW(free, optim.lr, weight_decay=optim.weight_decay)

    def step() -> float:
        adam.zero_grad()
        with layers:
            loss = model(pixel_values=normalised(images), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(free, optim.clip)
        adam.step()
        return loss.item()

    return step


def dino_predict(case: Case, sizes: Sizes) -> Callable[[], Any]:
    """A detection: the best pairs of query and class."""
    detector = detector_of(case)
    model = network(detector, sizes).to(torch_side.device()).eval()
    images, _ = shown(detector, case)
    layers, most = torch_side.layers(case.precision), detector.config.test.max_detections

    def detect() -> Any:
        with torch.no_grad(), layers:
            found = model(pixel_values=normalised(images))
            return best(found.logits.float(), found.pred_boxes.float(), most)

    return detect


def network(detector: Detector, sizes: Sizes) -> torch.nn.Module:
    """The network of our detector's sizes with seeded random weights, without dropout."""
    import bridge.runtime.torchvision_ops  # noqa: F401  (before transformers: see there)

    # isort: split
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    torch.manual_seed(0)
    model = detector.config.model
    config = DeformableDetrConfig(
        use_timm_backbone=False,
        backbone_config=_backbone(sizes),
        num_labels=detector.class_count,
        d_model=model.channels,
        num_feature_levels=len(model.strides),
        encoder_layers=model.encoder_layers,
        decoder_layers=model.decoder_layers,
        encoder_ffn_dim=model.ffn_width,
        decoder_ffn_dim=model.ffn_width,
        encoder_attention_heads=model.heads,
        decoder_attention_heads=model.heads,
        encoder_n_points=model.points,
        decoder_n_points=model.points,
        two_stage=True,
        two_stage_num_proposals=model.queries,
        with_box_refine=True,
        auxiliary_loss=True,
        dropout=0.0,
        disable_custom_kernels=True,
    )
    made = DeformableDetrForObjectDetection(config)
    for name, value in made.model.backbone.model.named_parameters():
        # Ours trains all but the stem and the first stage; transformers freezes this kind whole.
        value.requires_grad_(any(f"stages.{stage}." in name for stage in (1, 2, 3)))
    return made


def _backbone(sizes: Sizes) -> Any:
    """ResNet-50, or the smallest of its kind; maps at strides 8, 16 and 32."""
    from transformers import ResNetConfig

    small = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    stages = ["stage2", "stage3", "stage4"]
    return ResNetConfig(out_features=stages, **(small if sizes.tiny else {}))


def shown(detector: Detector, case: Case) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Images uint8 `[B, 3, H, W]` where the work is done, and our whole batch."""
    batch = filled(batch_shapes(detector, case, images_of(case), learning=True))
    images = torch.from_numpy(batch["image"]).to(torch_side.device())
    return images.permute(0, 3, 1, 2).contiguous(), batch


def normalised(images: torch.Tensor) -> torch.Tensor:
    """As ImageNet's networks are shown them."""
    mean, std = (
        torch.tensor(one, device=images.device)[:, None, None]
        for one in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images / 255 - mean) / std


def targets(batch: dict[str, np.ndarray], image: int) -> dict[str, torch.Tensor]:
    """Labels and boxes (centre, sides, in shares of the image) of an image."""
    height, width = batch["image"].shape[1:3]
    boxes = batch["boxes"][image]
    low, high = boxes[:, :2], boxes[:, 2:]
    centred = np.concatenate([(low + high) / 2, high - low], axis=1)
    shares = torch.from_numpy(centred / np.float32([width, height, width, height]))
    labels = torch.from_numpy(batch["labels"][image].astype(np.int64))
    return {"class_labels": labels.to(torch_side.device()), "boxes": shares.to(torch_side.device())}


def best(logits: torch.Tensor, boxes: torch.Tensor, most: int) -> tuple[torch.Tensor, ...]:
    """Scores, labels `[B, most]` and boxes `[B, most, 4]` of the best pairs of query and class."""
    scores, index = logits.sigmoid().flatten(1).topk(min(most, logits[0].numel()), dim=1)
    query = (index // logits.shape[2])[..., None].expand(-1, -1, 4)
    return scores, index % logits.shape[2], boxes.gather(1, query)

"""A DINO of the smallest size."""

from configs import vary

from weaksam_jax.detectors.dino import Dino, DinoConfig
from weaksam_jax.detectors.dino import config as parts

SIZES = ((48, 64), (64, 64), (33, 40))  # of three images, height and width

SMALL = DinoConfig(
    model=parts.ModelConfig(
        channels=8,
        heads=2,
        points=2,
        ffn_width=16,
        queries=12,
        neck_groups=2,
    ),
    loss=parts.DinoLossConfig(denoising=parts.DenoisingConfig(queries=6)),
    optim=parts.DinoOptimConfig(
        optimizer="adamw", lr=1e-3, warmup=2, steps=4, batch_size=2, checkpoint_every=2
    ),
    data=parts.DataConfig(scales=(((64, 64),),)),
    test=parts.TestConfig(tta_scales=(((64, 64),),), batch_size=2, max_detections=9),
)


def small(classes=("red", "green"), **changes) -> Dino:
    """The detector, with other values in parts of its config."""
    return Dino(vary(SMALL, **changes), classes)

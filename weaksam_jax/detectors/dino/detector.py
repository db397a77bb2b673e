"""DINO behind the interface of all detectors (`weaksam_jax.detectors.Detector`)."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from weaksam_jax.backbones import BACKBONES, is_frozen
from weaksam_jax.backbones.pixels import network_input
from weaksam_jax.detectors.dino.config import STATED, DinoConfig
from weaksam_jax.detectors.dino.denoising import denoise, no_slots
from weaksam_jax.detectors.dino.loss import dino_loss
from weaksam_jax.detectors.dino.model import DinoNetwork
from weaksam_jax.detectors.dino.outputs import TrainingOutputs
from weaksam_jax.detectors.dino.predict import detect
from weaksam_jax.detectors.dino.recipes import PRESETS
from weaksam_jax.detectors.start import start_from
from weaksam_jax.engine.mesh import AXIS
from weaksam_jax.engine.optimizer import make_optimizer
from weaksam_jax.engine.precision import layer_dtype, precise
from weaksam_jax.engine.predict import (
    Detections,
    Found,
    Predictor,
    on_devices,
    union_of_views,
)
from weaksam_jax.engine.step import Keys, Params
from weaksam_jax.engine.weights import Weights


@dataclass(frozen=True)
class Dino:
    """DINO with query drop, trained on boxes (pseudo boxes, here).

    classes: their names, or their number where a file names none. Batches hold `image`, `size` and,
    in training, `boxes` `[B, G, 4]`, `labels` `[B, G]`, `valid` `[B, G]`.
    """

    config: DinoConfig
    classes: tuple[str, ...] | int

    kind = "dino"
    Config = DinoConfig
    presets = PRESETS
    learns_from = "boxes"
    on_proposals = False

    @property
    def class_count(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @cached_property
    def network(self) -> DinoNetwork:
        model = self.config.model
        pyramid = BACKBONES[model.backbone].pyramid
        backbone = pyramid(width=model.backbone_width, dtype=layer_dtype(model.precision))
        return DinoNetwork(backbone, self.class_count, model)

    def init(self, key: jax.Array, batch: dict, weights: Weights | None = None) -> Params:
        """Fresh parameters, those of `weights` in their place: a backbone's (ImageNet's, or another
        detector's), or a whole DINO. batch: its shapes count."""
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        fresh = jax.jit(self.network.init)(key, images, jnp.ones((1, 2)))["params"]
        return self.start(fresh, weights)

    def start(self, fresh: Params, weights: Weights | None) -> Params:
        """`fresh` parameters (or their shapes) with those of `weights` in their place."""
        return start_from(
            fresh,
            weights,
            kind=self.kind,
            model=self.config.model,
            stated=STATED,
            scratch=self.config.optim.init == "scratch",
        )

    def shapes(self) -> Params:
        """Shapes and dtypes of the parameters."""
        images, size = np.zeros((1, 64, 64, 3), np.float32), np.ones((1, 2), np.float32)
        return jax.eval_shape(self.network.init, jax.random.key(0), images, size)["params"]

    @precise
    def loss(self, params: Params, batch: dict, keys: Keys, step: jax.Array):
        """The losses of all decoder layers, of the first stage and of denoising, with query drop
        from its step on; see `dino_loss`."""
        outputs = self.training_outputs(params, batch, keys.images, axis_name=AXIS)
        return dino_loss(outputs, batch, step=step, config=self.config.loss, axis_name=AXIS)

    def training_outputs(
        self, params: Params, batch: dict, keys: jax.Array, *, axis_name: str | None = None
    ) -> TrainingOutputs:
        """What the losses are made of. keys: typed `[B]`, with which each image draws its noise."""
        denoising = self.config.loss.denoising
        slots = no_slots(len(batch["image"]))
        if denoising is not None:
            slots = denoise(
                batch, keys, classes=self.class_count, config=denoising, axis_name=axis_name
            )
        images = self.normalised(batch)
        run = self.network.apply
        return run({"params": params}, images, batch["size"], slots, method="training")

    @precise
    def predict(self, params: Params, batch: dict) -> Detections:
        """Detections of one view, in pixels of the input, cut to the image."""
        size = jnp.asarray(batch["size"], jnp.float32)
        images = self.normalised(batch)
        return detect(self.network, params, images, size=size, config=self.config.test)

    def predictor(self, params: Params, mesh: Mesh | None = None) -> Predictor:
        """One view as it is; the union of several through one NMS."""
        run, test = on_devices(self.predict, params, mesh), self.config.test

        def union(iou_threshold: float) -> Predictor:
            more = {"iou_threshold": iou_threshold, "max_detections": test.max_detections}
            return union_of_views(run, **more)

        alone, several = union(1.0), union(test.nms)

        def predictor(views: Iterable[dict]) -> list[Found]:
            views = iter(views)
            first = list(itertools.islice(views, 2))
            return (several if len(first) > 1 else alone)(itertools.chain(first, views))

        return predictor

    def frozen(self, path: Sequence[str]) -> bool:
        return is_frozen(path, self.config.model.backbone, self.config.optim.frozen)

    def optimizer(self) -> optax.GradientTransformation:
        """That of the config, with smaller steps for the backbone."""

        def slower(updates, params):
            del params
            factor = self.config.optim.backbone_lr
            return {**updates, "backbone": jax.tree.map(lambda x: factor * x, updates["backbone"])}

        tx = make_optimizer(self.config.optim, self.frozen)
        return optax.chain(tx, optax.stateless(slower))

    def normalised(self, batch: dict) -> jax.Array:
        """The images of a batch as the backbone is shown them: float32 `[B, H, W, 3]`."""
        pixels = BACKBONES[self.config.model.backbone].pixels
        return network_input(batch["image"], batch["size"], pixels)

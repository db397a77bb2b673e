"""Faster R-CNN behind the interface of all detectors (`weaksam_jax.detectors.Detector`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from weaksam_jax.backbones import BACKBONES, is_frozen
from weaksam_jax.backbones.pixels import network_input
from weaksam_jax.detectors.faster_rcnn.config import STATED, FasterRcnnConfig
from weaksam_jax.detectors.faster_rcnn.loss import faster_rcnn_loss
from weaksam_jax.detectors.faster_rcnn.model import FasterRcnnNetwork
from weaksam_jax.detectors.faster_rcnn.predict import detect
from weaksam_jax.detectors.faster_rcnn.recipes import PRESETS
from weaksam_jax.detectors.start import start_from
from weaksam_jax.engine.mesh import AXIS
from weaksam_jax.engine.optimizer import make_optimizer
from weaksam_jax.engine.precision import layer_dtype, precise
from weaksam_jax.engine.predict import Detections, Predictor, on_devices, union_of_views
from weaksam_jax.engine.step import Keys, Params
from weaksam_jax.engine.weights import Weights


@dataclass(frozen=True)
class FasterRcnn:
    """Faster R-CNN with RoI drop, trained on boxes (pseudo boxes, here).

    classes: their names, or their number where a file names none. Batches hold `image`, `size` and,
    in training, `boxes` `[B, G, 4]`, `labels` `[B, G]`, `valid` `[B, G]`.
    """

    config: FasterRcnnConfig
    classes: tuple[str, ...] | int

    kind = "faster_rcnn"
    Config = FasterRcnnConfig
    presets = PRESETS
    learns_from = "boxes"
    on_proposals = False

    @property
    def class_count(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @cached_property
    def network(self) -> FasterRcnnNetwork:
        return build_network(self.config, self.class_count)

    def init(self, key: jax.Array, batch: dict, weights: Weights | None = None) -> Params:
        """Fresh parameters, those of `weights` in their place: a backbone's (ImageNet's, or the MIL
        detector's own), or a whole Faster R-CNN. batch: its shapes count."""
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        fresh = jax.jit(self.network.init)(key, images, jnp.zeros((1, 1, 4)))["params"]
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
        images, boxes = np.zeros((1, 64, 64, 3), np.float32), np.zeros((1, 1, 4), np.float32)
        return jax.eval_shape(self.network.init, jax.random.key(0), images, boxes)["params"]

    @precise
    def loss(self, params: Params, batch: dict, keys: Keys, step: jax.Array):
        """The four losses with RoI drop from its step on; see `faster_rcnn_loss`."""
        batch = {**batch, "image": self.normalised(batch)}
        how = {"config": self.config.loss, "axis_name": AXIS}
        return faster_rcnn_loss(self.network, params, batch, keys=keys.images, step=step, **how)

    @precise
    def predict(self, params: Params, batch: dict) -> Detections:
        """Detections of one view, in pixels of the input, cut to the image."""
        size = jnp.asarray(batch["size"], jnp.float32)
        return detect(
            self.network, params, self.normalised(batch), size=size, config=self.config.test
        )

    def predictor(self, params: Params, mesh: Mesh | None = None) -> Predictor:
        """The union of all views through one NMS."""
        test = self.config.test
        return union_of_views(
            on_devices(self.predict, params, mesh),
            iou_threshold=test.nms,
            max_detections=test.max_detections,
        )

    def frozen(self, path: Sequence[str]) -> bool:
        return is_frozen(path, self.config.model.backbone, self.config.optim.frozen)

    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.config.optim, self.frozen)

    def normalised(self, batch: dict) -> jax.Array:
        """The images of a batch as the backbone is shown them: float32 `[B, H, W, 3]`."""
        pixels = BACKBONES[self.config.model.backbone].pixels
        return network_input(batch["image"], batch["size"], pixels)


def build_network(config: FasterRcnnConfig, classes: int) -> FasterRcnnNetwork:
    """The network of a config."""
    model, dtype = config.model, layer_dtype(config.model.precision)
    return FasterRcnnNetwork(
        BACKBONES[model.backbone].pyramid(width=model.backbone_width, dtype=dtype),
        classes,
        strides=model.strides,
        anchor_sizes=model.anchor_sizes,
        anchor_ratios=model.anchor_ratios,
        channels=model.channels,
        extra_levels=model.extra_levels,
        fc_width=model.fc_width,
        canonical_size=model.canonical_size,
        canonical_level=model.canonical_level,
        roi_chunk=model.roi_chunk,
        aligned=model.aligned,
        round_anchors=model.round_anchors,
        dtype=dtype,
    )

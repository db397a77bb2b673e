"""The MIL detector behind the interface of all detectors (`weaksam_jax.detectors.Detector`)."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from weaksam_jax.backbones import BACKBONES, is_frozen
from weaksam_jax.backbones.pixels import network_input
from weaksam_jax.boxes import decode
from weaksam_jax.data.views import restore_boxes
from weaksam_jax.detectors.mil.config import STATED, MilConfig
from weaksam_jax.detectors.mil.drop_block import ConcreteDropBlock
from weaksam_jax.detectors.mil.loss import mil_loss, wsddn_scores
from weaksam_jax.detectors.mil.model import MilNetwork, Pool
from weaksam_jax.detectors.mil.recipes import PRESETS
from weaksam_jax.detectors.start import start_from
from weaksam_jax.engine.mesh import local_mesh, over_images, put_images, replicated, sharded
from weaksam_jax.engine.optimizer import make_optimizer
from weaksam_jax.engine.precision import layer_dtype, precise
from weaksam_jax.engine.predict import Detections, Found, Predictor
from weaksam_jax.engine.step import Keys, Params
from weaksam_jax.engine.weights import Weights
from weaksam_jax.ops.nms import multiclass_nms
from weaksam_jax.ops.padding import inside_mask
from weaksam_jax.ops.roi import roi_align, roi_pool


@dataclass(frozen=True)
class MilDetector:
    """Trained on tags and proposals alone: WSDDN with OICR's or MIST's refinement.

    classes: their names, or their number where a file names none. Batches hold, beside `image` and
    `size`, proposals: `boxes` `[B, N, 4]` (pixels of the input), `valid` `[B, N]`, `prior`
    `[B, N, C]` (see `MilSamples`; zeros: nothing is known) and, in training, `tags` bool `[B, C]`.
    """

    config: MilConfig
    classes: tuple[str, ...] | int

    kind = "mil"
    Config = MilConfig
    presets = PRESETS
    learns_from = "tags"
    on_proposals = True

    @property
    def class_count(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @cached_property
    def network(self) -> MilNetwork:
        return build_network(self.config, self.class_count)

    def init(self, key: jax.Array, batch: dict, weights: Weights | None = None) -> Params:
        """Fresh parameters, those of `weights` in their place: ImageNet's, or a whole MIL detector,
        of which only the class maps and the drop block may be missing. batch: its shapes count."""
        images, inside = self._input(batch)
        given = {"boxes": batch["boxes"], "prior": batch["prior"]}
        fresh = jax.jit(self.network.init)(key, images, inside, **given)
        return self.start(fresh["params"], weights)

    def start(self, fresh: Params, weights: Weights | None) -> Params:
        """`fresh` parameters (or their shapes) with those of `weights` in their place."""
        return start_from(
            fresh,
            weights,
            kind=self.kind,
            model=self.config.model,
            stated=STATED,
            optional=("tags/", "drop_block/"),
            imagenet=("backbone/", *BACKBONES[self.config.model.backbone].connected),
            scratch=self.config.optim.init == "scratch",
        )

    def shapes(self) -> Params:
        """Shapes and dtypes of the parameters."""
        batch = {
            "image": np.zeros((1, 64, 64, 3), np.uint8),
            "size": np.full((1, 2), 64, np.float32),
            "boxes": np.zeros((1, 1, 4), np.float32),
            "prior": np.zeros((1, 1, self.class_count), np.float32),
        }

        def init(key):
            images, inside = self._input(batch)
            given = {"boxes": batch["boxes"], "prior": batch["prior"]}
            return self.network.init(key, images, inside, **given)["params"]

        return jax.eval_shape(init, jax.random.key(0))

    @precise
    def loss(self, params: Params, batch: dict, keys: Keys, step: jax.Array):
        """Mean over the images of the MIL losses, plus the image-level loss on the class maps."""
        images, inside = self._input(batch)
        logits, outputs = self.network.apply(
            {"params": params},
            images,
            inside,
            boxes=batch["boxes"],
            prior=batch["prior"],
            train=True,
            valid=batch["valid"],
            rngs={"dropout": keys.part, "drop_block": jax.random.fold_in(keys.part, 1)},
        )
        loss = self.config.loss
        one_image = functools.partial(
            mil_loss,
            method=self.config.model.method,
            oicr_rule=loss.oicr_rule,
            ignore_below=loss.ignore_below,
            reduction=loss.image_loss,
        )
        losses, terms = jax.vmap(one_image)(outputs, batch["boxes"], batch["valid"], batch["tags"])
        terms = {name: value.mean() for name, value in terms.items()}
        if logits is None:  # a network without class maps
            return losses.mean(), terms
        terms["tags"] = tag_entropy(logits, batch)
        return losses.mean() + loss.tag_weight * terms["tags"], terms

    @precise
    def predict(self, params: Params, batch: dict) -> Detections:
        """Detections of one view, in pixels of the input, cut to the image."""
        scores, boxes = self.score(params, batch)
        size = batch["size"].astype(jnp.float32)
        boxes = jax.vmap(restore_boxes)(boxes, size, size, jnp.zeros(len(size), bool))
        return self.select(scores, boxes, batch["valid"])

    @precise
    def score(self, params: Params, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Scores `[B, N, C]` and boxes `[B, N, C, 4]` (input pixels) of every proposal.

        Scores are the mean softmax of the refinement branches ("wsddn": the product of its two
        streams), boxes the decoded mean of their regressions ("oicr", "wsddn": the proposals).
        """
        images, inside = self._input(batch)
        _, outputs = self.network.apply(
            {"params": params}, images, inside, boxes=batch["boxes"], prior=batch["prior"]
        )
        method = self.config.model.method
        scores = jax.nn.softmax(outputs.refine).mean(1)[..., 1:]
        if method == "wsddn":
            both = jax.vmap(wsddn_scores)(outputs.cls, outputs.det, batch["valid"])
            scores = both[..., -scores.shape[-1] :]
        boxes = jnp.broadcast_to(batch["boxes"][:, :, None], (*scores.shape, 4))
        if method == "mist":
            boxes = decode(outputs.deltas.mean(1)[:, :, 1:], boxes)
        return scores, boxes

    def select(self, scores: jax.Array, boxes: jax.Array, valid: jax.Array) -> Detections:
        """Class-wise NMS, the best `max_detections` of each image; empty boxes are not valid."""
        test = self.config.test
        best = functools.partial(
            multiclass_nms,
            score_threshold=0.0,
            iou_threshold=test.nms,
            max_output=test.max_detections,
            every_class=test.every_class,
        )
        boxes, scores, labels, found = jax.vmap(best)(boxes, scores, valid)
        found &= (boxes[..., 2:] > boxes[..., :2]).all(-1)
        return Detections(boxes, scores, labels, valid=found)

    def predictor(self, params: Params, mesh: Mesh | None = None) -> Predictor:
        """Scores and boxes are averaged over the views, then multiplied by `clue_factor` and
        selected."""
        return mean_of_views(self, params, local_mesh() if mesh is None else mesh)

    def frozen(self, path: Sequence[str]) -> bool:
        return is_frozen(path, self.config.model.backbone, self.config.optim.frozen)

    def optimizer(self) -> optax.GradientTransformation:
        """Biases learn twice as fast and do not decay; where the refinement branches have a rate of
        their own, OICR's official rule for them replaces that for biases: theirs decay and are not
        doubled (docs/provenance/mil.md, section 3)."""
        optim = self.config.optim

        def refined(names: Sequence[str]) -> bool:
            return optim.refine_lr != 1 and names[0].startswith(("refine", "deltas"))

        def decay(names: Sequence[str]) -> float:
            return 0.0 if names[-1] == "bias" and not refined(names) else 1.0

        def lr(names: Sequence[str]) -> float:
            return optim.refine_lr if refined(names) else 2.0 if names[-1] == "bias" else 1.0

        return make_optimizer(optim, self.frozen, lr_factor=lr, decay_factor=decay)

    @precise
    def maps(self, params: Params, images: jax.Array, sizes: jax.Array) -> dict[str, jax.Array]:
        """The backbone's maps float16 `[B, h, w, F]` as a cache holds them, `map0`, `map1`, ..."""
        shown = network_input(images, sizes, self._pixels)
        maps = self.network.backbone.apply({"params": params["backbone"]}, shown)
        return {f"map{i}": one.astype(jnp.float16) for i, one in enumerate(maps)}

    @property
    def _pixels(self) -> str:
        return self.config.model.pixels or BACKBONES[self.config.model.backbone].pixels

    def _input(self, batch: dict) -> tuple:
        """(the network's input: images or a tuple of cached maps, bool `[B, h, w]` cells that are
        not padding)."""
        sizes, stride = batch["size"], BACKBONES[self.config.model.backbone].stride
        if "map0" in batch:
            maps = tuple(batch[f"map{i}"] for i in range(self.network.levels))
            return maps, inside_mask(sizes / stride, *maps[0].shape[1:3])
        height, width = batch["image"].shape[1:3]
        images = network_input(batch["image"], sizes, self._pixels)
        return images, inside_mask(sizes / stride, height // stride, width // stride)


class TagClassifier(MilDetector):
    """The same network trained as a classifier of tags: the stand-in for ImageNet."""

    @precise
    def loss(self, params: Params, batch: dict, keys: Keys, step: jax.Array):
        """Binary cross entropy of the image-level logits."""
        images, inside = self._input(batch)
        logits = self.network.apply(
            {"params": params},
            images,
            inside,
            method=lambda m, x, i: m.tag_logits(m.features(x), i),
        )
        return tag_entropy(logits, batch), {}


def tag_classifier(detector: MilDetector) -> TagClassifier:
    """The classifier of tags that a detector is trained as at first."""
    optim = detector.config.optim
    optim = replace(optim, lr=optim.pretrain_lr, steps=optim.pretrain_steps)
    return TagClassifier(replace(detector.config, optim=optim), detector.classes)


def tag_entropy(logits: jax.Array, batch: dict) -> jax.Array:
    """Mean binary cross entropy; 0 for an image that is an example of nothing (no valid boxes)."""
    entropy = optax.sigmoid_binary_cross_entropy(logits, batch["tags"])
    return jnp.where(batch["valid"].any(1, keepdims=True), entropy, 0.0).mean()


def mean_of_views(detector: MilDetector, params: Params, mesh: Mesh) -> Predictor:
    """A view is one compiled call that adds to sums on the devices, each of which has images of its
    own; it has one program per padded size, which an image and its mirror share. Nothing comes back
    to the host before the NMS."""

    def add_view(params, batch, sums):
        scores, boxes = detector.score(params, batch)
        place = batch["size"], batch["original"], batch["flipped"]
        return sums[0] + scores, sums[1] + jax.vmap(restore_boxes)(boxes, *place)

    @functools.cache
    def selection(count):
        def select(_, sums, seen):
            scores, boxes = (one / count for one in sums)
            return detector.select(scores * seen["factor"], boxes, seen["valid"])

        return over_images(select, mesh)

    params, add_view = jax.device_put(params, replicated(mesh)), over_images(add_view, mesh, (2,))

    def zeros(shape):
        return jnp.zeros(shape, device=sharded(mesh))

    def predictor(views: Iterable[dict]) -> list[Found]:
        sums, count = None, 0
        for batch in views:
            images = len(batch["size"])
            batch = put_images(batch, mesh)
            factor = batch.pop("clue_factor")
            if sums is None:
                sums = zeros(factor.shape), zeros((*factor.shape, 4))
            sums, count = add_view(params, batch, sums), count + 1
        select = selection(count)
        seen = {"factor": factor, "valid": batch["valid"]}
        found = jax.device_get(select(None, sums, seen))
        return [_valid(found, row) for row in range(images)]

    return predictor


def _valid(found: Detections, row: int) -> Found:
    valid = np.asarray(found.valid[row])
    return Found(found.boxes[row][valid], found.scores[row][valid], found.labels[row][valid])


def build_network(config: MilConfig, classes: int) -> MilNetwork:
    """The network of a config."""
    model, backbone = config.model, BACKBONES[config.model.backbone]
    dtype = layer_dtype(model.precision)
    options = {name: getattr(model, name) for name in backbone.options}
    return MilNetwork(
        classes,
        _pool(config),
        backbone.single(width=model.backbone_width, dtype=dtype, name="backbone", **options),
        levels=backbone.maps,
        neck=model.neck,
        fc_width=model.fc_width,
        dropout=model.dropout,
        evidence=model.evidence,
        class_maps=model.class_maps,
        background=model.background,
        fc_std=model.fc_std,
        score_std=model.score_std,
        dtype=dtype,
        drop_block=ConcreteDropBlock(dtype) if model.drop_block else None,
    )


def _pool(config: MilConfig) -> Pool:
    model = config.model
    scale = 1.0 / BACKBONES[model.backbone].stride
    size = {"spatial_scale": scale, "output_size": model.pool_size}
    if model.pooling == "align":
        return functools.partial(roi_align, sampling_ratio=1, chunk=0, **size)
    return functools.partial(roi_pool, rounded=model.pooling == "max", **size)

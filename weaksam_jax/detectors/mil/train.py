"""Training of the MIL detector: first as a classifier of tags where the config asks for it."""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from weaksam_jax import runlog
from weaksam_jax.detectors.mil.detector import MilDetector, tag_classifier
from weaksam_jax.detectors.mil.features import FeatureCache, cache_maps
from weaksam_jax.detectors.mil.samples import MilSamples
from weaksam_jax.engine.distributed import run_leader_first
from weaksam_jax.engine.mesh import (
    check_batch,
    local_mesh,
    over_images,
    put_images,
    replicated,
)
from weaksam_jax.engine.step import Params
from weaksam_jax.engine.train import train_detector
from weaksam_jax.engine.weights import Weights

# Fields of the model config that a backbone's maps depend on beside its parameters.
MAPS_DEPEND_ON = ("backbone", "pixels", "rectify_last", "precision")


def train_mil(
    detector: MilDetector,
    samples: MilSamples,
    folder: str | Path,
    *,
    mesh: Mesh,
    seed: int,
    weights: Weights | None = None,
) -> Params:
    """Trains on tags and proposals; returns the parameters (nested dictionary of NumPy arrays).

    Resumes from the checkpoints below `folder`, logs to `folder/../log.jsonl` as "wsod_tags" and
    "wsod_mil"; the same seed gives the same bits on the same machine.
    """
    folder, optim = Path(folder), detector.config.optim
    check_batch(optim.batch_size, mesh.size, optim.micro_batches)
    init_key, tag_key, mil_key = jax.random.split(jax.random.key(seed), 3)
    params = detector.init(init_key, samples.example(), weights)
    samples.features = run_leader_first(
        lambda: frozen_maps(detector, params, samples, folder=folder)
    )
    phases = (("tags", tag_classifier(detector), tag_key), ("mil", detector, mil_key))
    for name, phase, key in phases:
        if phase.config.optim.steps:
            params = train_detector(
                phase,
                samples,
                folder / name,
                mesh=mesh,
                seed=seed,
                params=params,
                key=key,
                name=f"wsod_{name}",
                log=folder.parent / runlog.FILE,
            )
    return params


def frozen_maps(
    detector: MilDetector, params: Params, samples: MilSamples, folder: Path
) -> FeatureCache | None:
    """The cached maps of all images of `samples`, filled; None where the config caches none."""
    config = detector.config
    if not config.data.cache_maps:
        return None
    backbone = jax.device_get(params["backbone"])
    mesh = local_mesh()
    weights = jax.device_put({"backbone": backbone}, replicated(mesh))
    run = over_images(detector.maps, mesh)

    def maps_of(images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        shown = put_images({"images": images, "sizes": sizes}, mesh)
        return jax.device_get(run(weights, shown["images"], shown["sizes"]))

    return cache_maps(
        samples.split,
        samples.scales,
        folder,
        backbone=backbone,
        stated=[getattr(config.model, name) for name in MAPS_DEPEND_ON],
        maps_of=maps_of,
        batch_size=config.test.batch_size,
    )

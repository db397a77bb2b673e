"""The stages of the road, in order: what each reads, does, writes and measures.

Truth (boxes, masks) is opened here for measuring only, after a stage has done its work; every
function that trains or proposes is given a `TagSplit`.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

from experiments.pipeline import metrics as measure
from experiments.pipeline.config import check_weights
from experiments.pipeline.options import EXTRA_STAGES, STAGES, RoadOptions
from experiments.pipeline.runner import Road, Stage, say
from weaksam_jax.data.datasets import (
    dataset_fingerprint,
    open_tags,
    open_truth,
    split_names,
    verify_images,
)
from weaksam_jax.data.mini_set.write import write_mini
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.data.store import read_manifest
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings
from weaksam_jax.engine.checkpoint import load_params, save_params
from weaksam_jax.engine.distributed import run_on_leader
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.errors import BadInput
from weaksam_jax.files import file_fingerprint, fingerprint, read_json, write_json
from weaksam_jax.pgt import PgtSettings

# The embedded set is one data set; --seed varies the training on it.
MINI_SEED = 0


def travel(options: RoadOptions) -> dict:
    """Runs the whole road (or the chosen stages); returns metrics.json's content."""
    journey = Journey(options)
    wanted = journey.wanted()
    stages = wanted or journey.usual()
    check_weights(options.settings, stages)
    if "retrain" in stages and options.settings.retrain.init is not None:
        retrain_start(options.out, options.settings.retrain)  # weights that do not fit: at once
    run_on_leader(journey.prepare)
    metrics = Road(options.out, options.seed).follow(journey.stages(), wanted)
    page = options.out / "report" / "index.html"
    run_on_leader(lambda: say(f"finished: {page if page.exists() else options.out}"))
    return metrics


class Journey:
    """One run: its options, its data set (opened when needed) and its stages."""

    def __init__(self, options: RoadOptions):
        self.options, self.out, self.settings = options, options.out, options.settings
        self.data = self.out / "data" / "VOC2007" if options.data == "mini" else Path(options.data)
        if options.data.startswith("tfds:"):
            self.data = options.data

    # The data set

    def prepare(self) -> None:
        """Writes settings.json and, once, the embedded set; it is small, seeded and no stage."""
        if self.options.data == "mini":
            say("the embedded mini set is used (give --data for VOC2007 or your own photos)")
            if not self.data.exists():
                write_mini(self.data.parent, MINI_SEED)
        write_json(self.out / "settings.json", self.describe(), indent=1)

    @cached_property
    def names(self) -> dict[str, str]:
        """The names of the training and the test split."""
        chosen = {"train": self.settings.train_split, "test": self.settings.test_split}
        found = {} if all(chosen.values()) else split_names(self.data)
        return {role: name or found[role] for role, name in chosen.items()}

    @cached_property
    def splits(self) -> dict[str, TagSplit]:
        """Tags of both splits: all that training and prediction see."""
        return {role: open_tags(self.data, name) for role, name in self.names.items()}

    @cached_property
    def truths(self) -> dict[str, TruthSplit | None]:
        """Boxes and masks of both splits, for measuring; None for a data set of tags alone."""
        return {role: open_truth(self.data, name) for role, name in self.names.items()}

    @cached_property
    def mesh(self):
        return data_mesh()

    @property
    def proposal_root(self) -> Path:
        """Where the proposals are: this run's own, or a store made elsewhere."""
        own = self.options.proposals in ("sam", "selective_search")
        return self.out / "proposals" if own else Path(self.options.proposals)

    @property
    def exports(self) -> bool:
        """Whether this run makes its own proposals."""
        return self.proposal_root == self.out / "proposals"

    @property
    def needs_clues(self) -> bool:
        """Whether a clue network is trained or loaded: for proposals, or for new photos whose
        detections are weighed with its tags (`tag_power`)."""
        return self.exports or self.settings.retrain.tag_power > 0

    @property
    def clue_root(self) -> Path:
        """Where the clues are: this run's own, or beside the store that was made elsewhere."""
        return (self.out if self.exports else self.proposal_root) / "clues"

    # The stages

    def wanted(self) -> list[str] | None:
        """The names of --stages, checked; None: the whole road."""
        if self.options.stages is None:
            return None
        chosen = [name.strip() for name in self.options.stages.split(",") if name.strip()]
        for name in chosen:
            if name not in STAGES + EXTRA_STAGES:
                known = ", ".join(STAGES + EXTRA_STAGES)
                raise BadInput("--stages", f"{name} is no stage", f"choose from {known}")
        return chosen

    def usual(self) -> list[str]:
        """The stages of the whole road that these options have work for."""
        idle = set() if self.needs_clues else {"clues"}
        idle |= set() if self.exports else {"proposals"}
        idle |= {"retrain"} if self.options.retrain == "none" else set()
        return [name for name in STAGES if name not in idle]

    def describe(self) -> dict:
        """settings.json: every flag and setting as plain values."""
        return jsonable(asdict(self.options) | {"data": str(self.data)})

    def stages(self) -> list[Stage]:
        """The road. Settings and inputs of every stage are named here, so changes are noticed."""
        s, o = self.settings, self.options
        export = replace(s.export, source="sam" if o.proposals == "sam" else "selective_search")
        wsod = replace(s.wsod, method=o.wsod)
        stages = [
            # <out>/data may hold the data set itself: it is not this stage's to delete.
            Stage("data", jsonable([self._dataset_key()]), (), self.run_data, owns_folder=False),
            *([self._clue_stage()] if self.needs_clues else []),
            self.stage(
                "proposals",
                [export, s.sam, s.clue_use, self._store_key()],
                ("data", "clues") if self.exports else ("data",),
                lambda: self.run_proposals(export),
            ),
            self.training(
                "wsod", [wsod, _content(wsod.init)], ("proposals",), lambda: self.run_wsod(wsod)
            ),
            self.stage("pgt", [s.pgt], ("wsod",), self.run_pgt),
        ]
        extra = []
        if o.retrain != "none":
            plain = replace(s.retrain, drop=None)
            stages.append(self.retraining("retrain", s.retrain))
            extra.append(replace(self.retraining("retrain_without_drop", plain), optional=True))
        stages.append(self.stage("masks", [s.masks, s.sam], ("pgt",), self.run_masks))
        report = self.stage("report", [], tuple(one.name for one in stages), self.run_report)
        return [*stages, *extra, replace(report, shows=tuple(one.name for one in extra))]

    def _clue_stage(self) -> Stage:
        network = self.settings.clue_recipe()
        if isinstance(network, Path):
            network = file_fingerprint(network)
        return self.stage("clues", [self.settings.clues, network], ("data",), self.run_clues)

    def retraining(self, name: str, settings) -> Stage:
        """A stage that retrains on the pseudo boxes."""
        key = [settings, _content(settings.init)]
        return self.training(name, key, ("pgt",), lambda: self.run_retrain(name, settings))

    def training(self, *stage) -> Stage:
        """A stage in which all processes join."""
        return replace(self.stage(*stage), together=True)

    def stage(self, name: str, settings: list, reads: tuple, run: Callable[[], dict]) -> Stage:
        """A `Stage` whose settings are plain values, so that their fingerprint is stable."""
        return Stage(name, jsonable(settings), reads, run)

    def _dataset_key(self) -> list:
        return [[name, dataset_fingerprint(self.data, name)] for name in self.names.values()]

    def _store_key(self) -> list:
        """What identifies a proposal store made elsewhere; nothing for the run's own."""
        if self.exports:
            return []
        found = []
        for name in self.names.values():
            manifest = read_manifest(self.proposal_root, name)
            if manifest is None:
                path = self.proposal_root / name / "manifest.json"
                hint = f"finish python -m bridge.export --split {name} into that folder"
                raise BadInput(path, "does not exist", hint)
            found.append(fingerprint(manifest))
        return found

    def run_data(self) -> dict:
        """Decodes every image and reads every box once: what is broken is named now, not later."""
        counts = {role: verify_images(split) for role, split in self.splits.items()}
        has_truth = {role: truth is not None for role, truth in self.truths.items()}
        train = self.splits["train"]
        return {
            "dataset": {
                "name": self.options.data if self.options.data == "mini" else train.dataset,
                "train_images": counts["train"].images,
                "test_images": counts["test"].images,
                "negatives": counts["train"].negatives,
                "classes": len(train.classes),
                "truth": has_truth,
            }
        }

    def run_clues(self) -> dict:
        """Trains the clue network on tags."""
        from experiments.pipeline import clues

        clues.train(self.splits["train"], self.settings, self.out, self.options.seed)
        return {}

    def run_proposals(self, export) -> dict:
        """Proposals of both splits; clues of the test split come from predicted classes."""
        from experiments.pipeline import clues

        metrics = {}
        if self.exports:
            self._export(export)
            metrics["clues"] = clues.tag_map(self.out / "clues", self.splits["test"])
        metrics["proposals"] = measure.proposals(self.proposal_root, self.splits, self.truths)
        return metrics

    def _export(self, export) -> None:
        from bridge.proposals.export import export_split
        from bridge.sam.networks import load_sam
        from experiments.pipeline import clues

        network = clues.load(self.splits["train"], self.settings, self.out)
        sam = load_sam(self.settings.sam) if export.source == "sam" else None
        for role, labels in (("train", "tags"), ("test", "predicted")):
            export_split(
                self.splits[role],
                network,
                sam,
                replace(export, labels=labels),
                self.out / "proposals",
                self.out / "clues",
            )

    def run_wsod(self, settings) -> dict:
        """Trains the MIL detector on tags and proposals; detects on both splits."""
        from weaksam_jax.detectors.mil.train import train_wsod

        folder = self.out / "wsod"
        backbone = self.frozen_backbone(settings.backbone)
        params = train_wsod(
            self.splits["train"],
            self.proposal_root,
            settings,
            folder,
            self.mesh,
            self.options.seed,
            backbone,
            self.clue_root,
        )
        return run_on_leader(lambda: self.finish_wsod(params, settings, backbone))

    def finish_wsod(self, params: dict, settings, backbone: dict | None) -> dict:
        """Writes the detector and its detections on both splits."""
        from weaksam_jax.detectors.mil.detect import detect_wsod

        folder = self.out / "wsod"
        save_params(folder / "params.safetensors", params)
        found = {}
        for role, split in self.splits.items():
            found[role] = detect_wsod(
                params, split, self.proposal_root, settings, folder, backbone, self.clue_root
            )
            write_json(folder / f"detections_{role}.json", found[role])
        return measure.wsod(found, self.splits, self.truths, self.clue_root)

    def frozen_backbone(self, name: str) -> dict | None:
        """ImageNet weights of EfficientNet-Lite0 for Flax; None for a network trained here."""
        if name != "lite0":
            return None
        from bridge.weights.kinds import convert

        path = self.out / "backbone" / "lite0.safetensors"
        run_on_leader(lambda: path.exists() or bool(convert("efficientnet_lite0", path)))
        return load_params(path)

    def run_pgt(self) -> dict:
        """Adaptive pseudo ground truth, and top-1 beside it."""
        made = {}
        top1 = replace(self.settings.pgt, rule="top_k", k=1)
        for name, settings in (("pgt", self.settings.pgt), ("top1", top1)):
            made[name] = self.pseudo_boxes(settings)
            write_json(self.out / "pgt" / f"{name}.json", made[name])
        return measure.pgt(made, self.truths["train"])

    def pseudo_boxes(self, settings: PgtSettings) -> dict:
        """The COCO dictionary that these settings make of the MIL detector's detections."""
        from weaksam_jax.data.detections import naming, read_detections
        from weaksam_jax.pgt import make_pgt

        path = self.out / "wsod" / "detections_train.json"
        detections = read_detections(path, scores=True)
        with naming(path):
            return make_pgt(detections, self.splits["train"], settings)

    def run_retrain(self, name: str, settings) -> dict:
        """Trains Faster R-CNN on the pseudo boxes, from ImageNet weights (`init`, Lite0) or, on the
        mini set, from the MIL detector's backbone."""
        from weaksam_jax.detectors.faster_rcnn.train import train_retrain

        folder = self.out / name
        self.frozen_backbone(settings.backbone)  # writes Lite0's weights, where they are asked for
        params = train_retrain(
            read_json(self.out / "pgt" / "pgt.json"),
            self.splits["train"],
            settings,
            folder,
            self.mesh,
            self.options.seed,
            retrain_start(self.out, settings),
        )
        return run_on_leader(lambda: self.finish_retrain(name, params, settings))

    def finish_retrain(self, name: str, params: dict, settings) -> dict:
        """Writes the detector and its detections on the test split."""
        from experiments.pipeline.clues import stored_logits
        from weaksam_jax.detectors.faster_rcnn.detect import detect_retrain
        from weaksam_jax.detectors.faster_rcnn.network import detector_metadata

        folder, test = self.out / name, self.splits["test"]
        metadata = detector_metadata(settings, test.classes)
        save_params(folder / "params.safetensors", params, metadata)
        logits = stored_logits(self.clue_root, test) if settings.tag_power else None
        found = detect_retrain(params, test, settings, tag_logits=logits)
        write_json(folder / "detections_test.json", found)
        return measure.detector(name, found, self.truths["test"])

    def run_masks(self) -> dict:
        """SAM prompted by the pseudo boxes."""
        from bridge.sam.networks import load_sam
        from bridge.sam.pseudo_masks import pseudo_masks

        path = self.out / "masks" / "pseudo.json"
        pgt = read_json(self.out / "pgt" / "pgt.json")
        sam = load_sam(self.settings.sam)
        pseudo_masks(sam, pgt, self.splits["train"], self.settings.masks, path)
        return measure.masks(read_json(path), self.truths["train"])

    def run_report(self) -> dict:
        """The HTML page."""
        from weaksam_jax.report.report import write_report

        write_report(
            self.out,
            self.splits["train"],
            self.splits["test"],
            self.truths["train"],
            self.truths["test"],
        )
        return {}


def _content(name: str | None) -> str | None:
    """What identifies the weights in a file, so that another file of that name is noticed."""
    return file_fingerprint(Path(name)) if name and Path(name).is_file() else None


def retrain_start(run: Path, settings: RetrainSettings) -> dict | None:
    """Backbone parameters that retraining in a run starts from: those of `init`, ImageNet's Lite0,
    or the MIL detector's own (None when it has none). `BadInput` when the file does not fit."""
    from weaksam_jax.detectors.faster_rcnn.network import load_backbone

    if settings.init is not None:
        return load_backbone(settings.init, settings)
    if settings.backbone == "lite0":
        return load_backbone(run / "backbone" / "lite0.safetensors", settings)
    return load_backbone(run / "wsod" / "params.safetensors", settings, "backbone/")


def jsonable(value):
    """Plain JSON values of nested settings: dataclasses, tuples and paths included."""
    if hasattr(value, "__dataclass_fields__"):
        return jsonable(asdict(value))
    if isinstance(value, dict):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)

"""The whole pipeline at its smallest: 8 + 4 images, four steps a training, as a subprocess."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from experiments.pipeline.config import mini
from experiments.pipeline.jobs import JOBS
from experiments.pipeline.options import PipelineOptions, parse_options, settings_json
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.files import write_json
from weaksam_jax.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
STAGES = ("data", "clues", "proposals", "wsod", "pgt", "retrain", "masks", "report")
SMALL = {
    "weaktr": "epochs=2 warmup-epochs=1 batch-size=4 dim=16 heads=2 depth=2 crop=64 workers=0",
    "export": "prompts.grid-side=4 proposals.max-boxes=16 clue-side=32",
    "wsod": "optim.pretrain-steps=4 optim.steps=4 optim.warmup=1 optim.batch-size=4 "
    "model.fc-width=16 "
    "data.max-proposals=16 test.batch-size=4 data.scales.0=96,96 optim.checkpoint-every=2 "
    "test.max-detections=10",
    # Four steps do not make scores of .3: without a threshold every class has its pseudo boxes.
    "pgt": "score-threshold=0",
    "retrain": "optim.steps=4 optim.warmup=1 optim.batch-size=4 model.channels=16 "
    "model.fc-width=16 test.batch-size=4 optim.checkpoint-every=2 data.scales.0=96,96 "
    "test.tta-scales.0=96,96 test.max-detections=10 test.score-threshold=0 test.pre-nms=50 "
    "test.post-nms=20 loss.pre-nms=50 loss.post-nms=20 loss.rpn-batch=16 loss.roi-batch=16",
}
# A DINO beside the Faster R-CNN: flags of its section.
DINO = (
    "model.channels=8 model.heads=2 model.points=2 model.ffn-width=16 model.queries=12 "
    "model.neck-groups=2 model.encoder-layers=1 model.decoder-layers=1 loss.denoising.queries=4 "
    "optim.steps=4 optim.warmup=1 optim.batch-size=4 optim.checkpoint-every=2 data.scales.0=96,96 "
    "test.tta-scales.0=96,96 test.max-detections=5 test.batch-size=4"
)
# What must be the same bits, whatever interrupted the run.
RESULTS = (
    "clues/weaktr.safetensors",
    "proposals/*/*/*.safetensors",
    "wsod/params.safetensors",
    "wsod/detections_*.json",
    "pgt/*.json",
    "retrain/params.safetensors",
    "retrain/detections_test.json",
    "masks/pseudo.json",
)
# And where a DINO is retrained beside the Faster R-CNN.
RESULTS_OF_DINO = ("retrain_dino/params.safetensors", "retrain_dino/detections_test.json")


def write_tiny(folder: Path) -> Path:
    """The tiny data set: a VOC folder of the mini set's first scenes."""
    return write_mini(folder, 1, train_images=8, test_images=4, progress=False)


def flags(data: Path, out: Path, *more: str) -> list[str]:
    """Arguments of `experiments.custom`; `more` comes last."""
    small = [flag for stage, settings in SMALL.items() for flag in section(stage, settings)]
    head = ["--data", str(data), "--out", str(out), "--preset", "mini"]
    return [*head, *small, "--retrain.test.no-tta-flip", *more]


def section(stage: str, settings: str) -> list[str]:
    """Flags of a section, of settings "name=value name=value,value"."""
    pairs = (setting.split("=") for setting in settings.split())
    return [flag for name, value in pairs for flag in (f"--{stage}.{name}", *value.split(","))]


def with_dino() -> list[str]:
    """Flags that retrain a DINO beside the Faster R-CNN."""
    more = ("--retrain", "faster_rcnn,dino", "--retrain-dino.test.no-tta-flip")
    return [*more, *section("retrain-dino", DINO)]


def options(*argv: str, job: str = "custom") -> PipelineOptions:
    """What a main job makes of these flags."""
    return parse_options(argv, "", JOBS[job])


def start(data: Path, out: Path, *more: str) -> subprocess.Popen:
    """`python -m experiments.custom` in its own process; see `environment`."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.custom", *flags(data, out, *more)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment() -> dict[str, str]:
    """Programs are compiled with XLA's optimizations, as users have them."""
    return {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


def run_pipeline(data: Path, out: Path, *more: str) -> str:
    """Runs the pipeline to its end; returns what it said on stderr."""
    process = start(data, out, *more)
    _, said = process.communicate()
    assert process.returncode == 0, said[-3000:]
    return said


def stages_run(said: str) -> list[str]:
    """The stages that a call did not skip."""
    return [line.split(":")[0] for line in said.splitlines() if line.endswith(": running")]


def result_bytes(out: Path) -> dict[str, bytes]:
    """The files of `RESULTS` in a run folder, by relative path; with those of DINO if there is
    one."""
    found, more = {}, RESULTS_OF_DINO if (out / "retrain_dino").exists() else ()
    for pattern in (*RESULTS, *more):
        paths = sorted(out.glob(pattern))
        assert paths, f"{pattern} is missing"
        found |= {str(path.relative_to(out)): path.read_bytes() for path in paths}
    return found


def assert_same_results(one: Path, other: Path) -> None:
    """Names the files whose bytes differ."""
    a, b = result_bytes(one), result_bytes(other)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def write_run(folder: Path, data: str | Path, names: str = "faster_rcnn", **config) -> Path:
    """settings.json of a run of the mini preset on `data` that retrains the detectors of these
    names, some settings of it changed."""
    settings = replace(mini("mist", names), **config)
    options = PipelineOptions(str(data), folder, retrain=names, settings=settings, preset="mini")
    write_json(RunFolder(folder).settings, settings_json(options))
    return folder

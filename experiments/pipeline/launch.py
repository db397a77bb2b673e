"""What every main job does: read its flags, find the other processes, run the pipeline."""

import sys
from collections.abc import Sequence

from experiments.pipeline.graph import run_pipeline
from experiments.pipeline.jobs import JOBS
from experiments.pipeline.options import parse_options
from weaksam_jax.engine.distributed import start


def main_job(name: str, doc: str, argv: Sequence[str] | None) -> None:
    """Runs the pipeline of a main job with these flags."""
    options = parse_options(sys.argv[1:] if argv is None else argv, doc, JOBS[name])
    start()
    run_pipeline(options)

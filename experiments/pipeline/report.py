"""Where the report finds what a run of the pipeline made."""

from pathlib import Path

from weaksam_jax.report.artefacts import RunFiles


def report_files(run: Path, proposals: Path) -> RunFiles:
    """The parts of a run folder; proposals: its store, which may be another run's."""
    return RunFiles(
        root=run,
        page=run / "report" / "index.html",
        settings=run / "settings.json",
        metrics=run / "metrics.json",
        log=run / "log.jsonl",
        clues=run / "clues",
        proposals=proposals,
        mil=run / "wsod" / "detections_test.json",
        pgt=run / "pgt" / "pgt.json",
        top1=run / "pgt" / "top1.json",
        retrain=run / "retrain" / "detections_test.json",
        masks=run / "masks" / "pseudo.json",
    )

"""Where the report finds what a run of the pipeline made."""

from experiments.pipeline.run import Run
from weaksam_jax.report.artefacts import RunFiles


def report_files(run: Run) -> RunFiles:
    """The parts of a run; its proposals may be in a store made elsewhere."""
    folder = run.folder
    return RunFiles(
        root=folder.root,
        page=folder.report,
        settings=folder.settings,
        metrics=folder.metrics,
        log=folder.log,
        clues=folder.clues,
        proposals=run.proposals,
        mil=folder.detections("wsod", "test"),
        pgt=folder.pseudo_boxes("pgt"),
        top1=folder.pseudo_boxes("top1"),
        retrain=folder.detections("retrain", "test"),
        masks=folder.pseudo_masks,
        further={
            stage: folder.detections(stage, "test")
            for stage in run.retrainings
            if stage != "retrain"
        },
    )

"""Makes proposals (and clues) of a split with SAM or selective search, one file per image.

Example: python -m bridge.export --data data/VOC2007 --split trainval --out runs/proposals \\
--clues WeakTr_CAM_Generation.pth --sam sam_vit_h_4b8939.pth

The same command goes on where it was stopped. Any number of processes may work on one split: give
each --shard i/n, or start them by torchrun (RANK, WORLD_SIZE) or Slurm (SLURM_PROCID,
SLURM_NTASKS): `torchrun --nproc-per-node 4 -m bridge.export ...`, `srun --ntasks 4 python -m ...`.
The files do not depend on the number of shards. `python -m bridge.pack` makes a finished split a
few large files.

Memory of a process beside the networks, at most: 3.1 GB for WeakTr's attention and 0.4 GB per
class for its maps, 2.5 GB for SAM's ViT-B (a third more for L and H), 0.84 GB for decoded masks
(`bridge.proposals.export` has the measurements).
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from bridge.clues.networks import clue_supervision
from bridge.proposals.export import ExportConfig, export_split
from bridge.proposals.presets import PRESETS, PresetName, clue_network, preset_of_sam
from bridge.proposals.verify import verify_split
from bridge.runtime.command import run_command
from bridge.runtime.ranks import gpu_of_process, parse_shard, shard_of_process
from bridge.sam.networks import load_sam, sam_supervision
from bridge.sam.prompting import EncoderType
from weaksam_jax.data.datasets import is_training, open_tags
from weaksam_jax.data.records import TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.locks import check_made_by
from weaksam_jax.outputs import OutFolder
from weaksam_jax.supervision import ledger_row

Labels = Literal["auto", "tags", "predicted", "tags_at_test_time"]


def main(argv: list[str] | None = None) -> None:
    """Command line: see the head of this file."""

    def command(
        data: Path,
        split: str,
        out: OutFolder,
        shard: str | None = None,
        clues: Path | None = None,
        sam: str = "sam_mini",
        proposals: Literal["sam", "selective_search"] = "sam",
        labels: Labels = "auto",
        preset: PresetName | Literal["auto"] = "auto",
        keep_decoded: bool = False,
        encoder_dtype: EncoderType = "float32",
        device: Literal["auto", "cpu"] = "auto",
        verify: bool = False,
    ) -> None:
        """Exports a split.

        Args:
            data: a data set: VOCdevkit, COCO folder, or images/ with tags.csv.
            split: name of the split.
            out: proposals go to OUT/SPLIT, clues to OUT/clues/SPLIT.
            shard: i/n: this process takes every n-th image from the i-th on (0-based) [its rank
                under torchrun or Slurm, else 0/1].
            clues: weights of a clue network (published COCO ones have 90 outputs, which are mapped
                to the data set's category ids); without it SAM is prompted with the grid alone.
            sam: sam_mini, sam_mini_lite or the file of a published checkpoint.
            proposals: where boxes come from.
            labels: classes asked of the clue network: the image's tags (training splits) or those
                that it predicts [tags on a training split, predicted on others].
                tags_at_test_time takes the tags of a test split, as the official COCO val
                proposals did: for comparison only, results with it are not comparable to others.
            preset: settings by data set and source (bridge/proposals/presets.py says what they
                are) [those meant for the SAM; paper for a published one].
            keep_decoded: store the box and scores of every mask that SAM decodes too (22 bytes per
                mask), so that other thresholds and NMS need no second run.
            encoder_dtype: of SAM's image encoder; the others are faster on a GPU and move some
                boxes by pixels (bridge/proposals/agreement.py measures it).
            device: auto: the GPU of this process's local rank where there are GPUs.
            verify: check what OUT holds of the split, write nothing; 2 names the first bad file.
        """
        part = shard_of_process(os.environ) if shard is None else parse_shard(shard)
        preset = preset_of_sam(sam) if preset == "auto" else preset
        tags = open_tags(data, split, PRESETS[preset].difficult_tags)
        if verify:
            return _verify(out, tags)
        check_made_by(out, "export", ())
        config = ExportConfig.preset(
            preset, source=proposals, labels=_labels(labels, tags.split, split)
        )
        decoding = {"keep_decoded": keep_decoded, "encoder_dtype": encoder_dtype}
        config = replace(config, proposals=replace(config.proposals, **decoding))
        place = _device(device)
        network = None if clues is None else clue_network(clues, preset, tags)
        model = load_sam(sam).to(place) if proposals == "sam" else None
        seen = {} if clues is None else {"clues": ledger_row(clues.name, clue_supervision(clues))}
        if model is not None:
            seen["sam"] = ledger_row(Path(sam).name, sam_supervision(sam))
        places = {"root": out, "clue_root": out / "clues", "supervision": seen}
        report = export_split(tags, network, model, config=config, shard=part, **places)
        state = "complete" if report.complete else "other shards are still missing"
        print(
            f"{report.written} images written, {report.skipped} there already; "
            f"{tags.split}, shard {part[0]}/{part[1]}: {state}"
        )

    run_command(command, argv, "python -m bridge.export", about=__doc__)


def _verify(out: Path, tags: TagSplit) -> None:
    count = verify_split(out, tags.split, records=tags.records)
    print(f"{count} images of {tags.split} are whole")


def _labels(asked: Labels, split: str, name: str) -> str:
    """The label policy for a split (`name`: as the user wrote it); `BadInput` for a leak."""
    training = is_training(split)
    if asked == "auto":
        return "tags" if training else "predicted"
    if asked == "tags" and not training:
        problem = f"tags: {name} is no training split, its tags are unknown at test time"
        hint = "give --labels predicted, or tags_at_test_time to use them all the same"
        raise BadInput("--labels", problem, hint)
    return asked


def _device(asked: Literal["auto", "cpu"]) -> torch.device:
    """Where SAM runs; makes a GPU the one that "cuda" means from here on."""
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    place = torch.device("cuda", gpu_of_process(os.environ, torch.cuda.device_count()))
    torch.cuda.set_device(place)
    return place


if __name__ == "__main__":
    from weaksam_jax.cli import entry_point

    raise SystemExit(entry_point(main))

"""Converts published PyTorch weights to a safetensors file that weaksam_jax reads.

Example: python -m bridge.convert vgg16 --from vgg16-00b39a1b.pth --to weights/vgg16.safetensors

A detector goes back, too: python -m bridge.convert wetectron --from mist.safetensors --to mist.pth
"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from bridge.runtime.command import run_command
from bridge.weights.kinds import KINDS, convert, convert_back
from weaksam_jax.errors import BadInput
from weaksam_jax.outputs import OutFile
from weaksam_jax.ranges import Amount, Layers


def main(argv: list[str] | None = None) -> None:
    """Command line: see the head of this file."""

    def command(
        kind: Annotated[Literal[tuple(KINDS)], tyro.conf.Positional],
        to: OutFile,
        source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
        epsilon: Amount | None = None,
        classes: str | None = None,
        heads: Layers | None = None,
        supervision: str | None = None,
        note: str | None = None,
    ) -> None:
        """Converts a file.

        Args:
            kind: which network and whose (the list above).
            to: the safetensors file to write; for a detector also a .pth: the published layout.
            source: the published file (with a .pth to write: the arrays' file); efficientnet_lite0
                has that of the installed package.
            epsilon: of faster_rcnn_torchvision's batch norm, which the file does not tell:
                torchvision runs its published COCO weights, and detectors trained on from them,
                with 0 and all others with 1e-5 [0 for the published file, which is known by its 91
                outputs and old names, else 1e-5].
            classes: names of a Faster R-CNN's or DINO's classes in the file's order, without
                background, separated by commas [torchvision and dino_official with 91 outputs:
                COCO's; else those of the data that it is run on, in their order: VOC by name, COCO
                by id].
            heads: of a DINO's attention, which the file does not tell [8].
            supervision: what the weights have seen: some of none, tags, text, boxes, masks and
                unknown, separated by commas; runs that shall see tags alone ask for it. Say tags
                for a Faster R-CNN or DINO that was retrained on pseudo boxes [by the kind: tags
                for ImageNet's and MIL detectors, boxes for others; ours: as the file says].
            note: whose weights they are, for the ledger of such runs [by the kind].
        """
        asked = {"epsilon": epsilon, "classes": classes and classes.split(","), "heads": heads}
        asked |= {"supervision": supervision, "note": note}
        options = {name: value for name, value in asked.items() if value is not None}
        if to.suffix == ".pth" and KINDS[kind].back:
            print(_back(kind, to, source, options=options))
        elif to.suffix == ".safetensors":
            print(convert(kind, to, source, **options))
        else:
            raise BadInput(to, "does not end in .safetensors", "name the output F.safetensors")

    rows = "\n".join(f"- {name}: {row.about}" for name, row in KINDS.items())
    run_command(command, argv, "python -m bridge.convert", about=f"{__doc__}\n{rows}")


def _back(kind: str, to: Path, source: Path | None, options: dict) -> Path:
    if source is None:
        raise BadInput("--from", "is missing", "name the safetensors file of the detector")
    for name in options:
        raise BadInput(f"--{name}", "is no option of the way back", "leave it out")
    return convert_back(kind, to, source)


if __name__ == "__main__":
    from weaksam_jax.cli import entry_point

    raise SystemExit(entry_point(main))

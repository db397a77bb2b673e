"""Reads proposal pickles of WeakSAM's official code into a store, and writes a store as one.

Example: python -m bridge.released_pickles read --data data/VOC2007 --split trainval \\
--pickle proposals.pkl --store runs/official

Both formats are known: MIST's dict of boxes, scores and image ids, and OICR's list in the order of
the image list. Nothing in a pickle is run: it may hold arrays and plain containers only.
"""

from pathlib import Path

from bridge.proposals.official_pickles import Format, Source, export_official, import_official
from bridge.runtime.command import run_command
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.outputs import OutFile, OutFolder


def main(argv: list[str] | None = None) -> None:
    """Command line: see the head of this file."""

    def read(
        data: Path, split: str, pickle: Path, store: OutFolder, source: Source = "imported"
    ) -> None:
        """A pickle (MIST's dict or OICR's list) into a store.

        Args:
            data: the data set: VOCdevkit or COCO folder.
            split: name of the split; its image list gives the order of an OICR list.
            pickle: the file to read.
            store: folder of the store.
            source: what made the boxes, for a file of one source (the official ones mix them).
        """
        count = import_official(pickle, open_tags(data, split), store, source=source)
        print(f"{count} boxes of {split} in {store}")

    def write(
        data: Path, split: str, store: Path, pickle: OutFile, format: Format = "mist-voc"
    ) -> None:
        """A store as a pickle for the official MIST or OICR code.

        Args:
            data: the data set.
            split: name of the split; its image list gives the order.
            store: folder of the store, packed or not.
            pickle: the file to write.
            format: mist-voc (uint16), mist-coco (float32) or oicr (a list without ids).
        """
        count = export_official(store, open_tags(data, split), pickle, form=format)
        print(f"{count} boxes of {split} in {pickle}")

    commands = {"read": read, "write": write}
    run_command(commands, argv, "python -m bridge.released_pickles", about=__doc__)


if __name__ == "__main__":
    from weaksam_jax.cli import entry_point

    raise SystemExit(entry_point(main))

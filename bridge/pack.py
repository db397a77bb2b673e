"""Packs a finished split of proposals, and its clues, into a few ArrayRecord shards, or checks one.

Example: python -m bridge.pack --store runs/proposals --split trainval --to runs/packed

With --verify in place of --to it checks a store, packed or not. Every command that reads a store
reads a packed one too. The first store is left as it is: delete it after verifying the other.
"""

from pathlib import Path

from bridge.proposals.packing import pack_split
from bridge.proposals.verify import verify_split
from bridge.runtime.command import run_command
from weaksam_jax.errors import BadInput
from weaksam_jax.outputs import OutFolder
from weaksam_jax.ranges import Count


def main(argv: list[str] | None = None) -> None:
    """Command line: see the head of this file."""

    def command(
        store: Path,
        split: str,
        to: OutFolder | None = None,
        clues: Path | None = None,
        verify: bool = False,
        per_shard: Count = 1024,
    ) -> None:
        """Packs a split.

        Args:
            store: the folder that bridge.export wrote (its --out).
            split: name of the split.
            to: the folder of the packed store, its clues in TO/clues; STORE is left as it is.
            clues: the folder of the clues [STORE/clues; of a run directory RUN/clues].
            verify: check STORE (packed or not) instead: every file whole and of one export, boxes
                inside the image, manifest agrees. Ends with 2 and names the first bad file if not.
            per_shard: images per shard.
        """
        if verify == (to is not None):
            raise BadInput("--to", "and --verify exclude each other", "give one of the two")
        if verify:
            print(f"{verify_split(store, split, clues)} images of {split} are whole")
        else:
            count = pack_split(store, split, to, clue_root=clues, per_shard=per_shard)
            print(f"{count} images of {split} packed into {to}")

    run_command(command, argv, "python -m bridge.pack", about=__doc__)


if __name__ == "__main__":
    from weaksam_jax.cli import entry_point

    raise SystemExit(entry_point(main))

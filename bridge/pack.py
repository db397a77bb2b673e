"""A finished split as a few large files: ArrayRecord shards in place of one file an image.

`python -m bridge.pack --store DIR --split S --to DIR2` packs proposals, and clues if there are any;
`python -m bridge.pack --store DIR --split S --verify` checks a store of either layout.

Every command that reads a store reads a packed one too (layout: `weaksam_jax.data.packs`). Records
are the files byte for byte. The first store is left as it is: delete it after verifying the other.
"""

from pathlib import Path

import tyro

from bridge.proposals.verify import verify_split
from weaksam_jax.data.packs import INDEX, open_pack, write_pack
from weaksam_jax.data.store import proposal_path, read_manifest, write_manifest
from weaksam_jax.errors import BadInput


def pack_split(
    root: str | Path,
    split: str,
    to: str | Path,
    clue_root: str | Path | None = None,
    per_shard: int = 1024,
) -> int:
    """Packs a finished split of the store `root` into the store `to`; returns the images.

    Clues under `clue_root` (None: `<root>/clues`, if any) go to `<to>/clues`. The manifest is
    copied last. Raises `BadInput` for a split that is not finished or holds a bad file
    (`verify_split` runs first), and when `to` is the store itself.
    """
    root, to = Path(root), Path(to)
    clue_root = root / "clues" if clue_root is None else Path(clue_root)
    if to.resolve() == root.resolve():
        raise BadInput(to, "is the store itself", "give another folder; the old one is left alone")
    if open_pack(root / split) is not None:
        raise BadInput(root / split / INDEX, "is a packed store", "give the store of single files")
    has_clues = (clue_root / split).is_dir()
    verify_split(root, split, clue_root if has_clues else None)
    manifest = read_manifest(root, split)
    images = manifest.pop("images")
    (to / split / "manifest.json").unlink(missing_ok=True)
    folders = [(root, to)]
    if has_clues:
        folders.insert(0, (clue_root, to / "clues"))
    for source, target in folders:
        files = (proposal_path(source, split, image_id).read_bytes() for image_id in images)
        write_pack(target / split, images, files, per_shard)
    write_manifest(to, split, images, manifest)
    return len(images)


def main(argv: list[str] | None = None) -> None:
    """Command line: see the head of this file."""

    def command(
        store: Path,
        split: str,
        to: Path | None = None,
        clues: Path | None = None,
        verify: bool = False,
        per_shard: int = 1024,
    ) -> None:
        """A finished split into ArrayRecord shards, or the check of a store.

        Args:
            store: the folder that bridge.export wrote (its --out).
            split: name of the split.
            to: the folder of the packed store, its clues in TO/clues; STORE is left as it is.
            clues: the folder of the clues [STORE/clues; of a run directory RUN/clues].
            verify: check STORE (packed or not) instead: every file whole and of one export, boxes
                inside the image, manifest agrees. Ends with 2 and names the first bad file if not.
            per_shard: images a shard.
        """
        if verify == (to is not None):
            raise BadInput("--to", "and --verify exclude each other", "give one of the two")
        if per_shard < 1:
            raise BadInput("--per-shard", f"is {per_shard}", "give at least 1")
        if verify:
            print(f"{verify_split(store, split, clues)} images of {split} are whole")
        else:
            count = pack_split(store, split, to, clues, per_shard)
            print(f"{count} images of {split} packed into {to}")

    tyro.cli(command, args=argv, description=__doc__, prog="python -m bridge.pack")


if __name__ == "__main__":
    from weaksam_jax.cli import entry_point

    raise SystemExit(entry_point(main))

"""A finished split as a few large files: ArrayRecord shards in place of one file an image.

`python -m bridge.pack --store DIR --split S --to DIR2` packs proposals, and clues if there are any;
`python -m bridge.pack --store DIR --split S --verify` checks a store of either layout.

Every command that reads a store reads a packed one too (layout: `weaksam_jax.data.packs`). Records
are the files byte for byte. The first store is left as it is: delete it after verifying the other.
"""

from pathlib import Path

import tyro

from bridge.verify import verify_split
from weaksam_jax.data.packs import INDEX, open_pack, write_pack
from weaksam_jax.data.store import proposal_path, read_manifest, write_manifest
from weaksam_jax.errors import BadInput


def pack_split(root: str | Path, split: str, to: str | Path, per_shard: int = 1024) -> int:
    """Packs a finished split of the store `root` into the store `to`; returns the images.

    Clues under `<root>/clues` go to `<to>/clues`. The manifest is copied last. Raises `BadInput`
    for a split that is not finished or holds a bad file (`verify_split` runs first), and when `to`
    is the store itself.
    """
    root, to = Path(root), Path(to)
    if to.resolve() == root.resolve():
        raise BadInput(to, "is the store itself", "give another folder; the old one is left alone")
    if open_pack(root / split) is not None:
        raise BadInput(root / split / INDEX, "is a packed store", "give the store of single files")
    verify_split(root, split)
    manifest = read_manifest(root, split)
    images = manifest.pop("images")
    (to / split / "manifest.json").unlink(missing_ok=True)
    folders = [(root, to)]
    if (root / "clues" / split).is_dir():
        folders.insert(0, (root / "clues", to / "clues"))
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
        verify: bool = False,
        per_shard: int = 1024,
    ) -> None:
        """A finished split into ArrayRecord shards, or the check of a store.

        Args:
            store: the folder that bridge.export wrote (its --out).
            split: name of the split.
            to: the folder of the packed store; STORE is left as it is.
            verify: check STORE (packed or not) instead: every file whole and of one export, boxes
                inside the image, manifest agrees. Ends with 2 and names the first bad file if not.
            per_shard: images a shard.
        """
        if verify == (to is not None):
            raise BadInput("--to", "and --verify exclude each other", "give one of the two")
        if per_shard < 1:
            raise BadInput("--per-shard", f"is {per_shard}", "give at least 1")
        if verify:
            print(f"{verify_split(store, split)} images of {split} are whole")
        else:
            print(f"{pack_split(store, split, to, per_shard)} images of {split} packed into {to}")

    tyro.cli(command, args=argv, description=__doc__, prog="python -m bridge.pack")


if __name__ == "__main__":
    from weaksam_jax.cli import entry_point

    raise SystemExit(entry_point(main))

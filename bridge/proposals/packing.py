"""A finished split as a few large files: ArrayRecord shards in place of one file per image.

Records are the files byte for byte (layout: `weaksam_jax.data.packs`).
"""

from pathlib import Path

from bridge.proposals.verify import verify_split
from weaksam_jax.data.packs import INDEX, check_pack, open_pack, write_pack
from weaksam_jax.data.store import proposal_path, read_manifest, reopen_split, write_manifest
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
    (`verify_split` runs first), when `to` is the store itself, and when it has files of these names
    that are no store's.
    """
    root, to = Path(root), Path(to)
    clue_root = root / "clues" if clue_root is None else Path(clue_root)
    hint = "give another folder; the old one is left alone"
    sources = {(one / split).resolve() for one in (root, clue_root)}
    for target in (to, to / "clues"):
        if (target / split).resolve() in sources:
            raise BadInput(to, "is the store itself", hint)
        if next((target / split).glob("*/[!.]*.safetensors"), None):
            raise BadInput(target / split, "is a store of single files", hint)
    if open_pack(root / split) is not None:
        raise BadInput(root / split / INDEX, "is a packed store", "give the store of single files")
    has_clues = (clue_root / split).is_dir()
    verify_split(root, split, clue_root if has_clues else None)
    manifest = read_manifest(root, split)
    images = manifest.pop("images")
    folders = [(root, to)]
    if has_clues:
        folders.insert(0, (clue_root, to / "clues"))
    for _, target in folders:
        check_pack(target / split, -(-len(images) // per_shard))
    reopen_split(to, split)
    for source, target in folders:
        files = (proposal_path(source, split, image_id).read_bytes() for image_id in images)
        write_pack(target / split, images, files, per_shard=per_shard)
    write_manifest(to, split, images, metadata=manifest)
    return len(images)

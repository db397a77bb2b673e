"""Files of a store without a data set."""

from pathlib import Path

from weaksam_jax.data.store import Proposals, parse_proposals, proposal_path, read_stored


def stored_proposals(root: str | Path, split: str, image_id: int) -> Proposals:
    """The proposals of an image, whatever its size in any data set."""
    path = proposal_path(root, split, image_id)
    return parse_proposals(*read_stored(root, split, image_id), image_id, path=path)

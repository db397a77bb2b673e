"""What identifies the weights of a network: a text that is the same for the same values."""

import dataclasses
import hashlib

import numpy as np
from torch import Tensor, nn

from weaksam_jax.files import fingerprint
from weaksam_jax.settings import to_plain

_PLAIN = (bool, int, float, str, tuple, list, type(None))


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) of a network's named tensors: same weights, same text."""
    return tensors_fingerprint(module.state_dict())


def tensors_fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 (first 16 hex digits) of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        array = np.ascontiguousarray(value.detach().cpu().numpy())
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def network_fingerprint(network: object) -> str:
    """Same text for clue networks that compute the same.

    The network's own attribute `fingerprint` when it has one, else of its attributes: tensors and
    those of torch modules, frozen settings, and numbers, texts and tuples as they are. Raises
    TypeError for others: they cannot be compared from one process to the next.
    """
    own = getattr(network, "fingerprint", None)
    if own is not None:
        return str(own)
    kind = type(network).__name__
    parts = {name: _part(value, name, kind) for name, value in vars(network).items()}
    return fingerprint([kind, parts])


def _part(value: object, name: str, kind: str) -> object:
    """What identifies an attribute of a network; TypeError when nothing does."""
    if isinstance(value, nn.Module):
        return weights_fingerprint(value)
    if isinstance(value, Tensor):
        return tensors_fingerprint({"": value})
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, _PLAIN):
        return repr(value)
    raise TypeError(f"{kind}.{name} cannot be compared; give {kind} a fingerprint")

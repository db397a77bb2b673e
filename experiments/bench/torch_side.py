"""What the PyTorch forms of the benches share: precision, device, memory."""

from contextlib import AbstractContextManager

import torch

from weaksam_jax.engine.precision import Precision


def device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """The GPU's, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def layers(precision: Precision) -> AbstractContextManager:
    """Layers called within compute in this precision (on a CPU tf32 is float32), convolutions by
    the algorithm that is fastest where it is tried, as XLA has them."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bfloat16")


def peak_gib() -> float | None:
    """The most memory that tensors have held on the GPU since the last call; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 2)


def wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()

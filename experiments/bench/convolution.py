"""Entries of `experiments.bench`: a convolution with its gradients, beside PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.bench.entry import Case, Entry

# Padded (height, width) and channels of maps: the embedded set's network, and VGG16's blocks.
MAPS = {"mini": (8, 40, 40, 48), "vgg2": (1, 240, 320, 128), "vgg5": (1, 60, 80, 512)}


def convolution(name: str) -> Entry:
    """A 3 x 3 convolution that keeps the channels: forward, and the gradients of map and kernel."""
    from weaksam_jax.ops.convolution import convolution as ours_of

    shape, rng = MAPS[name], np.random.default_rng(0)
    x = rng.standard_normal(shape, dtype=np.float32)
    kernel = rng.standard_normal((3, 3, shape[-1], shape[-1]), dtype=np.float32)

    @jax.jit
    def step(x, kernel):
        def run(x, kernel):
            dimensions = ("NHWC", "HWIO", "NHWC")
            return ours_of(
                x, kernel, (1, 1), "SAME", rhs_dilation=(1, 1), dimension_numbers=dimensions
            )

        out, back = jax.vjp(run, x, kernel)
        return out, *back(out)

    arrays = tuple(map(jnp.asarray, (x, kernel)))
    tensors = [
        torch.from_numpy(x).permute(0, 3, 1, 2),
        torch.from_numpy(kernel).permute(3, 2, 0, 1),
    ]
    tensors = [one.contiguous().requires_grad_() for one in tensors]

    def torch_step() -> np.ndarray:
        out = torch.nn.functional.conv2d(*tensors, padding=1)
        return torch.autograd.grad(out, tensors, out.detach())[1].permute(2, 3, 1, 0).numpy()

    def agree(ours, other) -> str:
        apart = np.abs(np.asarray(ours[2]) - other).max() / np.abs(other).max()
        return f"gradients of the kernel differ by {apart:.1e} of the largest"

    work = f"3 x 3 convolution and its gradients, {' x '.join(map(str, shape))}"
    ours = lambda: jax.block_until_ready(step(*arrays))  # noqa: E731
    return Entry(work, ours, "PyTorch", other=torch_step, agree=agree)


def case(name: str) -> Case:
    """The entry of a map of `MAPS`."""
    return lambda: convolution(name)


CASES = {f"convolution_{name}": case(name) for name in MAPS}

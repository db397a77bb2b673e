"""Layers of all networks."""

import functools

import flax.linen as nn

from weaksam_jax.ops.convolution import convolution

# Flax's layer in a form that is fast on CPUs, too.
Conv = functools.partial(nn.Conv, conv_general_dilated=convolution)

"""Frozen networks in PyTorch: clues, prompts, SAM, export of arrays. Never imports jax.

The files beside this one are commands; the work is in the folders: `clues` (networks trained on
tags), `proposals` (from clues to stored boxes), `sam`, `weights` (published files) and `runtime`.
"""

from weaksam_jax.interrupts import first_of_all

first_of_all()

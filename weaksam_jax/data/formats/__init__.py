"""Layouts of data sets on disk, one file a layout; `weaksam_jax.data.datasets` chooses by the files."""

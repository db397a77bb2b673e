"""Readers of data sets on disk, one file per format; `weaksam_jax.data.datasets` has the table."""

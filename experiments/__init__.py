"""Entry points and settings: the one place that knows both sides."""

from weaksam_jax.interrupts import first_of_all

first_of_all("weaksam")

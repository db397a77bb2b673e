"""DINO (Zhang et al. 2023) with query drop."""

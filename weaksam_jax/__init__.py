"""WeakSAM in JAX: everything that is compiled, and the plain NumPy records both worlds share.

Importing this package, `weaksam_jax.boxes`, `weaksam_jax.errors`, `weaksam_jax.files` or
`weaksam_jax.data` imports neither jax nor torch, so that `bridge` may use them.
"""

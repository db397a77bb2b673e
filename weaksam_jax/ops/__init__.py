"""Plain jnp operations with static shapes on boxes and maps; no flax, no detector.

One concept per file: `anchors`, `matching`, `nms`, `padding`, `proposals` (of an RPN), `roi`,
`sampling`. Unless a name says otherwise a function takes one image: `jax.vmap` it over a batch.
"""

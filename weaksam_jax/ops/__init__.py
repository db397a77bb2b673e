"""Pure jnp operations: RoI ops, NMS, matching. No flax."""

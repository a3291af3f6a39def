"""Arrays that explicit sharding divides among devices."""

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding, reshard
from jaxtyping import Array, PyTree


def gathered(tree: PyTree) -> PyTree:
    """The arrays, each device with the whole of those that explicit sharding divides: along such an axis nothing can be
    sliced, or contracted, without saying how the result is divided."""

    def whole(x):
        divided = isinstance(x, Array) and any(part is not None for part in jax.typeof(x).sharding.spec)
        return reshard(x, PartitionSpec()) if divided else x

    return jax.tree.map(whole, tree)


def divided(x: Array, sharding: Sharding | None) -> Array:
    """The array, divided as another is that explicit sharding divides."""
    if isinstance(sharding, NamedSharding) and any(part is not None for part in sharding.spec):
        return reshard(x, sharding.spec)
    return x

"""Arrays on disk: whole or not at all, behind their digest, no pickle."""

import hashlib
import io
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def write(path: Path, tree: PyTree) -> None:
    """The arrays of a tree, by their bits, for NumPy has no bfloat16."""
    held = io.BytesIO()
    arrays = [np.asarray(x) for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]
    np.savez(held, *[np.frombuffer(bytearray(x.tobytes()), np.uint8) for x in arrays])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    with partial.open("wb") as file:
        file.write(hashlib.sha256(held.getbuffer()).digest())
        file.write(held.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path, like: PyTree) -> PyTree | None:
    """What `write` wrote, as arrays in the place of those of `like`; nothing if it is damaged, or of other sizes.

    **Raises:** `FileNotFoundError` if it is not there.
    """
    raw = path.read_bytes()
    if hashlib.sha256(raw[32:]).digest() != raw[:32]:
        return None
    with np.load(io.BytesIO(raw[32:]), allow_pickle=False) as kept:
        bits = [kept[name].tobytes() for name in kept.files]
    arrays, rest = eqx.partition(like, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    if [len(x) for x in bits] != [x.size * x.dtype.itemsize for x in leaves]:
        return None
    values = [jnp.asarray(np.frombuffer(b, x.dtype).reshape(x.shape)) for b, x in zip(bits, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, values), rest)

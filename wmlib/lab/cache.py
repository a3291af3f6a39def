"""What is costly and computed once on a machine: trained starting points that several runs share."""

from . import _extra as _extra  # isort: split

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import filelock
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .fingerprints import fingerprint


def cache_folder() -> Path:
    """`$WMLIB_CACHE`, or `wmlib` in the user's folder of caches (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if given := os.environ.get("WMLIB_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wmlib"


def place(name: str, recipe: Mapping[str, Any], code: Callable[..., Any]) -> Path:
    """A folder of the cache for what a recipe and a function's code make, such as the ends of `wm.walk_sequence`.

    **Arguments:** `name`, for people; `recipe`, whatever decides the result, JSON holds it; `code`, a function of a module or
    of a chapter, whose digest (`wmlib.lab.fingerprints`) tells the folder from those of its earlier versions.

    **Returns:** the path, which need not exist yet.

    **Raises:** `ValueError` for a name that is no file's, or a recipe that JSON does not hold.

    **Example:** `folder = wm.lab.cache.place("five-tasks", {**config, "seed": seed}, evaluate)`
    """
    _check_name(name)
    return (
        cache_folder() / f"{name}-{hashlib.sha256(f'{_words(recipe)} {fingerprint(code)}'.encode()).hexdigest()[:16]}"
    )


def _check_name(name):
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"the name must be one of letters, digits, - and _, for a file is called so; got {name!r}")


def _words(recipe):
    try:
        return json.dumps(recipe, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the recipe must hold numbers, texts, lists and the like: {error}") from error


def once(name: str, make: Callable[[Mapping[str, Any]], PyTree], recipe: Mapping[str, Any], like: PyTree) -> PyTree:
    """Weights made by a recipe: read where they have been made before, else made, and kept.

    The key is the recipe and the digest of the code of `make` (`wmlib.lab.fingerprints`), so that neither can change
    without the weights being made anew. Of several processes one makes them, and the others wait. A file is written whole
    or not at all, behind its digest; one that is damaged is made anew. It holds arrays alone, no pickle.

    **Arguments:**

    - `name`: of the file, for people.
    - `make`: a function of the recipe to the weights; a function of a module or of a chapter.
    - `recipe`: whatever decides the result, such as sizes, seeds, rates and the fingerprint of the data; JSON holds it.
    - `like`: weights of the same structure, shapes and types.

    **Returns:** the weights, those arrays of `like` that `make` gave.

    **Raises:** `ValueError` for a name that is no file's, a recipe that JSON does not hold, arrays of a type that NumPy
    lacks, or weights unlike `like`.

    **Example:** `net = wm.lab.cache.once("base", train, {"seed": 0, "steps": 1000}, like=network)`
    """
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"the name must be one of letters, digits, - and _, for a file is called so; got {name!r}")
    try:
        words = json.dumps(recipe, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the recipe must hold numbers, texts, lists and the like: {error}") from error
    shapes = [(x.shape, jnp.dtype(x.dtype).name) for x in jax.tree.leaves(eqx.filter(like, eqx.is_array))]
    places = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(eqx.filter(like, eqx.is_array))]
    if lacking := {dtype for _, dtype in shapes if not hasattr(np, dtype)}:
        raise ValueError(f"arrays of {', '.join(sorted(lacking))} cannot be kept; cast them to float32")
    key = hashlib.sha256(f"{words} {fingerprint(make)} {shapes} {places}".encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{key}.weights"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        if (kept := _read(path, shapes)) is None:
            made = make(recipe)
            arrays, structure = jax.tree.flatten(eqx.filter(made, eqx.is_array))
            wanted = jax.tree.structure(eqx.filter(like, eqx.is_array))
            if structure != wanted or [(x.shape, jnp.dtype(x.dtype).name) for x in arrays] != shapes:
                raise ValueError(
                    f"what {make.__qualname__} made has another structure, other shapes or types than `like`"
                )
            kept = [np.asarray(x) for x in arrays]
            held = io.BytesIO()
            np.savez(held, *kept)
            partial = path.with_suffix(f".{os.getpid()}")
            with partial.open("wb") as file:
                file.write(hashlib.sha256(held.getbuffer()).digest())
                file.write(held.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    dynamic, static = eqx.partition(like, eqx.is_array)
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(dynamic), map(jnp.asarray, kept)), static)


def _read(path, shapes):
    """The arrays of a file, or nothing if it is not there or not what was written."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(whole[32:]).digest() != whole[:32]:
        return None
    with np.load(io.BytesIO(whole[32:]), allow_pickle=False) as file:
        return [file[f"arr_{i}"] for i in range(len(shapes))]

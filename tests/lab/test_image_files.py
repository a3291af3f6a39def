"""Image files of any mode become images of the dataset's mode; rows that lack something are named."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import wmlib as wm

MODES = {"RGB": "png", "L": "png", "P": "png", "1": "png", "LA": "png", "RGBA": "png", "I;16": "png", "CMYK": "tiff"}


def stored(image, kind):
    encoded = io.BytesIO()
    image.save(encoded, kind)
    return {"bytes": encoded.getvalue(), "path": None}


def load(name="cifar10", split="train", **columns):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WMLIB_DATA", folder)
        (Path(folder) / name).mkdir()
        pq.write_table(pa.table(columns), Path(folder) / name / f"{split}.parquet")
        return wm.load_dataset(name, split)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(MODES)), st.sampled_from(["cifar10", "mnist"]), st.integers(1, 9), st.integers(1, 9), st.data()
)  # fmt: skip
def test_a_file_of_any_mode_has_the_pixels_it_shows(mode, name, height, width, data):
    values = data.draw(st.lists(st.integers(0, 255), min_size=height * width * 3, max_size=height * width * 3))
    colours = Image.fromarray(np.array(values, np.uint8).reshape(height, width, 3))
    if mode == "I;16":
        deep = 257 * np.asarray(colours.convert("L")).astype(np.uint16)
        image, shown = Image.fromarray(deep), Image.fromarray((deep // 257).astype(np.uint8))
    else:
        image = shown = colours.convert(mode)
    column, channels = ("img", "RGB") if name == "cifar10" else ("image", "L")
    found = load(name, **{column: [stored(image, MODES[mode])], "label": [1]}).inputs
    # What Pillow shows of the file, on a scale from 0 to 1, whatever the file's own.
    right = np.asarray(shown.convert(channels), np.float32).reshape(height, width, -1).transpose(2, 0, 1) / 255
    assert found.shape == (1, len(channels), height, width)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    if mode == channels:
        np.testing.assert_array_equal(found[0], right)
    else:
        np.testing.assert_allclose(found[0], right, atol=1e-6)


GOOD = stored(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)), "png")
WIDE = stored(Image.fromarray(np.zeros((4, 5, 3), np.uint8)), "png")
DEEP = stored(Image.fromarray(np.zeros((4, 4), np.float32)), "tiff")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": [GOOD, None], "label": [0, 1]}, "image 1 of cifar10 is nothing; .*as the hub has them"),
        ({"img": [GOOD, {"bytes": None, "path": "a.png"}], "label": [0, 1]}, "image 1 of cifar10 is a path without"),
        ({"img": [GOOD["bytes"]], "label": [0]}, "image 0 of cifar10 is a value of type bytes; the column must hold"),
        ({"img": [GOOD, GOOD, WIDE], "label": [0, 1, 2]}, r"image 2 of cifar10 has the shape \(3, 4, 5\).*one size"),
        (
            {"img": [DEEP], "label": [0]},
            "image 0 of cifar10 cannot be decoded .*the mode F, have no known range: store 8 or 16 bits.*; copy or download",
        ),
        ({"img": [{"bytes": b"\x89PNG\r\n", "path": ""}], "label": [0]}, "image 0 of cifar10 cannot be decoded"),
        ({"img": [GOOD] * 3, "label": [0, None, 2]}, r"row 1 of cifar10 has no label in 'label' \(1 of 3 .*leave such"),
        ({"img": [GOOD] * 2, "label": [0.0, float("nan")]}, "row 1 of cifar10 has no label"),
        ({"img": [GOOD], "label": ["cat"]}, "cifar10 has labels of type string in 'label'; store them as numbers"),
        (
            {"img": [GOOD], "label": [2**40]},
            r"row 0 of cifar10 has the label 1099511627776 .*from 0 to 9; number the 10 classes from 0",
        ),
        (
            {"img": pa.array([], pa.struct([("bytes", pa.binary())])), "label": pa.array([], pa.int64())},
            "no rows; copy",
        ),
    ],
)
def test_images_and_labels_that_are_not_there(columns, message):
    with pytest.raises(ValueError, match=message):
        load(**columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["good", None], "label": [0, 1]},
            "row 1 of imdb has nothing for 'text', not a text; leave the row out",
        ),
        (
            {"text": [b"good"], "label": [0]},
            "row 0 of imdb has a value of type bytes for 'text', not a text; .*strings",
        ),
        ({"text": ["a", "b"], "label": [None, None]}, "imdb has labels of type null"),
        ({"text": ["a", "b"], "label": pa.array([0, None])}, r"row 1 of imdb has no label in 'label' \(1 of 2"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "imdb has no rows; copy or download"),
    ],
)
def test_texts_and_labels_that_are_not_there(columns, message):
    with pytest.raises(ValueError, match=message):
        load("imdb", **columns)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.data())
def test_a_row_without_a_label_is_found_wherever_it_is(rows, data):
    missing = data.draw(st.integers(0, rows - 1))
    labels = [None if row == missing else row for row in range(rows)]
    with pytest.raises(ValueError, match=rf"row {missing} of imdb has no label in 'label' \(1 of {rows} have none\)"):
        load("imdb", text=["a"] * rows, label=labels)


def test_labels_of_other_whole_types_stay_what_they_are():
    for kind in (pa.int8(), pa.uint16(), pa.int64(), pa.bool_()):
        labels = load(img=[GOOD] * 2, label=pa.array([0, 1]).cast(kind)).labels
        assert labels.dtype == np.int32
        assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist5k", 0, 1, 1), "train must be at least 1, got 0"),
        (("mnist5k", 2, -1, 1), "validation must be at least 0, got -1"),
        (("mnist5k", 2, 1, 0), "test must be at least 1, got 0"),
        (("mnist5k", True, 1, 1), "train must be an integer, got True"),
        (("imdb", 2, 1, 1), "imdb is a dataset of texts; choose one of images: mnist5k, cifar10"),
        (("nothing", 2, 1, 1), "there is no dataset 'nothing'"),
    ],
)
def test_splits_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        wm.load_splits(*arguments)


@pytest.mark.parametrize("pool", [0, -1, 3, True])
def test_pools_that_do_not_divide_the_images(pool):
    with pytest.raises(
        ValueError, match=r"pool must (divide the size of the images, 28 × 28|be (at least 1|an integer))"
    ):
        wm.load_splits("mnist5k", 2, 1, 1, pool=pool)


def test_a_channel_without_contrast(monkeypatch, tmp_path):
    monkeypatch.setenv("WMLIB_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    flat = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    flat[..., 1] = 7
    for split in ("train", "test"):
        table = pa.table({"img": [stored(Image.fromarray(flat), "png")] * 3, "label": [0, 1, 2]})
        pq.write_table(table, tmp_path / "cifar10" / f"{split}.parquet")
    with pytest.raises(ValueError, match="a channel of cifar10 is the same in all 2 training images; take more"):
        wm.load_splits("cifar10", 2, 1, 1)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["cifar10", "mnist"]), st.sampled_from([np.int32, np.float32]), st.integers(-(2**31), 2**31 - 1))
def test_an_image_of_no_known_range_is_refused(name, kind, value):
    image = stored(Image.fromarray(np.full((4, 4), value, kind)), "tiff")
    with pytest.raises(ValueError, match=rf"image 0 of {name} cannot be decoded .*no known range: store 8 or 16 bits"):
        load(name, **{"img" if name == "cifar10" else "image": [image], "label": [0]})


def test_an_image_of_too_many_pixels_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(ValueError, match=r"image 0 of cifar10 cannot be decoded .*exceeds limit"):
        load(img=[GOOD], label=[0])


@pytest.mark.parametrize("cut", [8, 20, 40])
def test_an_image_that_ends_early_is_named(cut):
    with pytest.raises(ValueError, match="image 1 of cifar10 cannot be decoded"):
        load(img=[GOOD, {"bytes": GOOD["bytes"][:cut], "path": None}], label=[0, 1])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.sampled_from([b"\xff", b"caf\xe9", b"\xc3"]), st.booleans(), st.data())
def test_a_text_that_is_not_utf8_is_found(rows, text, large, data):
    row = data.draw(st.integers(0, rows - 1))
    texts = pa.array([text if i == row else b"good" for i in range(rows)], pa.large_binary() if large else pa.binary())
    kind = pa.large_string() if large else pa.string()
    column = pa.Array.from_buffers(kind, rows, texts.buffers())
    with pytest.raises(
        ValueError, match=rf"row {row} of imdb has a text in 'text' that is not UTF-8 .*leave the row out"
    ):
        load("imdb", text=column, label=[0] * rows)


CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10, "fashion_mnist": 10}
COLUMNS = {"cifar10": ("img", "label"), "cifar100": ("img", "fine_label")}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(CLASSES)), st.lists(st.integers(-3, 103), min_size=1, max_size=5), st.sampled_from([1, 0.5])
)
def test_a_label_is_one_of_the_classes(name, numbers, scale):
    image, label = COLUMNS.get(name, ("image", "label"))
    labels = [number * scale for number in numbers]
    columns = {image: [GOOD] * len(labels), label: labels}
    wrong = [i for i, y in enumerate(labels) if y != int(y) or not 0 <= y < CLASSES[name]]
    if not wrong:
        found = load(name, **columns).labels
        assert found.dtype == np.int32
        assert found.tolist() == labels
        return
    says = rf"row {wrong[0]} of {name} has the label .*\({len(wrong)} of {len(labels)} are such\).*from 0 to"
    with pytest.raises(ValueError, match=says):
        load(name, **columns)


def test_labels_of_texts_are_classes_all_withheld_or_numbers_to_regress_on():
    assert load("imdb", text=["a", "b"], label=[-1, -1]).labels.tolist() == [-1, -1]
    for labels in ([0, -1], [0, 2], [0, 0.5]):
        with pytest.raises(ValueError, match=r"row 1 of imdb has the label .*number the 2 classes from 0"):
            load("imdb", text=["a", "b"], label=labels)
    for labels in ([0.5, 5.0], [1, 2]):
        assert load("stsb", sentence1=["a", "b"], sentence2=["c", "d"], label=labels).labels.dtype == np.float32
    for number in (np.inf, 1e300):
        with pytest.raises(ValueError, match=r"row 0 of stsb has the label .*not a finite number of 32 bits"):
            load("stsb", sentence1=["a"], sentence2=["c"], label=[number])

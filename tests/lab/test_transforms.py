"""What a context does to an image, against independent implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.lab.transforms import mix_noise, rotate

SIZE = 14
IMAGES = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
DISC = np.asarray(rotate(jnp.ones((1, SIZE, SIZE)), 0.0))[0] > 0.5
turned = jax.jit(rotate)


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_quarter_turns_are_those_of_numpy(quarter):
    ours = np.asarray(turned(IMAGES[0], quarter / 4))
    np.testing.assert_allclose(ours[:, DISC], np.rot90(IMAGES[0], quarter, axes=(1, 2))[:, DISC], atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(s=st.floats(0, 1, width=32))
def test_any_turn_is_the_affine_transform_of_scipy(s):
    c, d, middle = np.cos(2 * np.pi * s), np.sin(2 * np.pi * s), np.full(2, (SIZE - 1) / 2)
    turn = np.array([[c, d], [-d, c]])
    other = scipy.ndimage.affine_transform(IMAGES[0, 0], turn, middle - turn @ middle, order=1)
    inner = np.hypot(*(np.indices((SIZE, SIZE)) - (SIZE - 1) / 2)) < SIZE / 2 - 1
    np.testing.assert_allclose(np.asarray(turned(IMAGES[0], s))[0][inner], other[inner], atol=1e-4)


def test_nothing_is_left_outside_the_disc():
    assert not np.asarray(turned(IMAGES[0], 0.1))[:, ~DISC].any()
    assert (~DISC).sum() == SIZE**2 - DISC.sum() > 0


def test_only_square_images_are_turned():
    with pytest.raises(ValueError, match="square"):
        rotate(jnp.ones((1, 4, 5)), 0.0)


def test_noise_replaces_the_image_by_degrees():
    x, noise = IMAGES
    np.testing.assert_array_equal(mix_noise(jnp.asarray(x), jnp.asarray(noise), 0.0), x)
    np.testing.assert_array_equal(mix_noise(jnp.asarray(x), jnp.asarray(noise), 1.0), noise)
    half = mix_noise(jnp.asarray(x), jnp.asarray(noise), 0.5)
    np.testing.assert_allclose(half, (x + noise) / 2, rtol=1e-6)


class TestSplits:
    def test_images_are_standardised_by_the_training_images_alone(self):
        parts = wm.load_splits("mnist5k", 300, 50, 40)
        assert [len(p[0]) for p in parts[:3]] == [len(p[1]) for p in parts[:3]] == [300, 50, 40]
        x = np.asarray(parts.train[0], np.float64)
        assert abs(x.mean()) < 1e-5
        assert abs(x.std() - 1) < 1e-5
        raw = wm.load_dataset("mnist5k", "train", 350).inputs
        expected = (raw[300:] - raw[:300].mean()) / raw[:300].std()
        np.testing.assert_allclose(parts.validation[0], expected, atol=1e-5)

    def test_the_parts_are_the_first_rows_of_their_splits(self):
        parts = wm.load_splits("mnist5k", 30, 20, 10)
        train, test = wm.load_dataset("mnist5k", "train", 50), wm.load_dataset("mnist5k", "test", 10)
        np.testing.assert_array_equal(jnp.concatenate([parts.train[1], parts.validation[1]]), train.labels)
        np.testing.assert_array_equal(parts.test[1], test.labels)
        assert parts.fingerprint == f"{train.fingerprint} {test.fingerprint}"

    def test_pooling_averages_blocks(self):
        fine, coarse = wm.load_splits("mnist5k", 30, 20, 10), wm.load_splits("mnist5k", 30, 20, 10, pool=2)
        assert coarse.test[0].shape == (10, 1, 14, 14)
        blocks = np.asarray(fine.test[0]).reshape(10, 1, 14, 2, 14, 2).mean(axis=(3, 5))
        # Standardised apart: equal up to a scale and a shift.
        scale, shift = np.polyfit(blocks.ravel(), np.asarray(coarse.test[0]).ravel(), 1)
        np.testing.assert_allclose(coarse.test[0], scale * blocks + shift, atol=1e-4)

    @pytest.mark.parametrize("pool", [0, -1, 3])
    def test_blocks_have_to_fit(self, pool):
        with pytest.raises(ValueError, match="pool"):
            wm.load_splits("mnist5k", 30, 20, 10, pool=pool)

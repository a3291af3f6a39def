"""Generative replay: the bound, what is drawn, and that it learns."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from wmlib import rivals
from wmlib.rivals import generative

KEY = jax.random.key(0)
VAE = generative.VAE((1, 4, 4), 2, (3,), key=KEY)
X = jnp.sign(jax.random.normal(KEY, (8, 1, 1, 1))) * jnp.ones((8, 1, 4, 4))
TOLERANCE = {jnp.float16: 5e-3, jnp.bfloat16: 5e-2, jnp.float32: 1e-5}
TYPES = st.sampled_from(list(TOLERANCE))
# Widths of the convolutions; channels; height and width when they are through; length of the code; images; type, seed.
FEW = st.integers(1, 3)
SIZES = st.tuples(st.lists(FEW, min_size=1, max_size=2), FEW, st.integers(1, 2), st.integers(1, 2), FEW, FEW, TYPES, st.integers(0, 99))  # fmt: skip


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def autoencoder(sizes):
    """A VAE of the sizes drawn, images for it, their type and the seed."""
    widths, channels, height, width, latent, count, dtype, seed = sizes
    in_shape = (channels, height * 2 ** len(widths), width * 2 ** len(widths))
    vae = generative.VAE(in_shape, latent, tuple(widths), key=jax.random.key(seed))
    return cast(vae, dtype), jax.random.normal(KEY, (count, *in_shape), dtype), dtype, seed


class TestDivergence:
    def test_is_the_integral(self):
        z = np.linspace(-12, 12, 2001)
        p, q = norm.logpdf(z), norm.logpdf(z, 0.7, np.exp(-0.4))
        exact = np.sum(np.exp(q) * (q - p)) * (z[1] - z[0])
        np.testing.assert_allclose(generative.kl(jnp.array([0.7]), jnp.array([-0.8])), exact, rtol=1e-5)

    @settings(max_examples=20, deadline=None)
    @given(
        numbers=st.lists(st.tuples(st.floats(-3, 3, width=16), st.floats(-4, 4, width=16)), min_size=1, max_size=5),
        dtype=TYPES,
    )
    def test_is_that_of_torch(self, numbers, dtype):
        torch = pytest.importorskip("torch")
        mean, log_variance = (jnp.asarray(x, dtype) for x in zip(*numbers, strict=True))
        given = [torch.tensor(np.asarray(x, np.float64)) for x in (mean, log_variance)]
        normal, one = torch.distributions.Normal(given[0], (given[1] / 2).exp()), torch.distributions.Normal(0.0, 1.0)
        exact = torch.distributions.kl_divergence(normal, one).sum().item()
        ours = generative.kl(mean, log_variance)
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6)

    @settings(max_examples=10, deadline=None)
    @given(order=st.permutations(range(4)))
    def test_does_not_depend_on_the_order_of_the_code(self, order):
        mean, log_variance = jax.random.normal(KEY, (2, 4))
        order = np.asarray(order)
        moved = generative.kl(mean[order], log_variance[order])
        np.testing.assert_allclose(moved, generative.kl(mean, log_variance), rtol=1e-5)
        assert generative.kl(jnp.zeros(4), jnp.zeros(4)) == 0


class TestBound:
    def test_is_that_of_torch(self):
        """The same weights and draws, in torch's layers and distributions."""
        torch = pytest.importorskip("torch")
        vae = generative.VAE((2, 8, 4), 3, (3, 4), key=KEY)
        vae = eqx.tree_at(lambda v: v.log_spread, vae, jnp.asarray(-0.3))
        images, key = jax.random.normal(KEY, (5, 2, 8, 4)), jax.random.key(3)
        draws = jnp.stack([jax.random.normal(k, (3,)) for k in jax.random.split(key, 5)])

        def tensor(x):
            return torch.tensor(np.asarray(x))

        functional = torch.nn.functional
        h = x = tensor(images)
        for layer in vae.down:
            h = functional.relu(functional.conv2d(h, tensor(layer.weight), tensor(layer.bias)[:, 0, 0], 2, 1))
        mean, log_variance = functional.linear(h.flatten(1), tensor(vae.code.weight), tensor(vae.code.bias)).chunk(2, 1)
        z = mean + (log_variance / 2).exp() * tensor(draws)
        h = functional.linear(z, tensor(vae.start.weight), tensor(vae.start.bias)).reshape(5, 4, 2, 1)
        for layer in vae.up:
            # Torch's kernels are those of the convolution whose gradient a transposed one is: turned round.
            kernel = tensor(layer.weight).flip(2, 3).swapaxes(0, 1)
            h = functional.conv_transpose2d(functional.relu(h), kernel, tensor(layer.bias)[:, 0, 0], 2, 1)
        normal = torch.distributions.Normal
        fit = normal(h, math.exp(-0.3)).log_prob(x).sum((1, 2, 3))
        away = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum(1)
        np.testing.assert_allclose(generative.elbo(vae, images, key=key), (fit - away).mean().item(), rtol=1e-5)

    @settings(max_examples=5, deadline=None)
    @given(sizes=SIZES)
    def test_is_the_density_less_the_divergence_where_the_image_does_not_hang_on_the_code(self, sizes):
        vae, images, dtype, seed = autoencoder(sizes)
        vae = eqx.tree_at(lambda v: (v.start.weight, v.log_spread), vae, (jnp.zeros_like(vae.start.weight), jnp.asarray(0.5, dtype)))  # fmt: skip

        @eqx.filter_jit
        def parts(vae, images):
            mean = vae.decode(jnp.zeros(vae.start.in_features, dtype))
            return mean, jax.vmap(lambda x: generative.kl(*vae.encode(x)))(images)

        mean, away = (np.asarray(part, np.float64) for part in parts(vae, images))
        density = norm.logpdf(np.asarray(images, np.float64), mean, math.exp(0.5)).sum((1, 2, 3))
        bound = generative.elbo(vae, images, key=KEY)
        assert bound.dtype == jnp.float32
        np.testing.assert_allclose(bound, np.mean(density - away), rtol=TOLERANCE[dtype])

    def test_training_raises_it_and_a_key_says_all(self):
        loss = eqx.filter_jit(eqx.filter_value_and_grad(lambda vae, key: -generative.elbo(vae, X, key=key)))
        vae, first = VAE, loss(VAE, KEY)[0]
        assert first == loss(VAE, KEY)[0]
        for i in range(30):
            gradient = loss(vae, jax.random.key(i))[1]
            assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))
            vae = eqx.apply_updates(vae, jax.tree.map(lambda g: -0.01 * g, gradient))
        assert loss(vae, KEY)[0] < first


class TestImages:
    @settings(max_examples=5, deadline=None)
    @given(sizes=SIZES)
    def test_are_decoded_codes_of_the_shape_and_type_of_what_was_seen(self, sizes):
        vae, images, dtype, seed = autoencoder(sizes)
        mean, log_variance = vae.encode(images[0])
        assert (mean.dtype, mean.shape) == (log_variance.dtype, log_variance.shape) == (dtype, (vae.start.in_features,))
        drawn = generative.sample(vae, len(images), key=jax.random.key(seed))
        assert (drawn.dtype, drawn.shape) == (images.dtype, images.shape)
        codes = jax.random.normal(jax.random.key(seed), (len(images), vae.start.in_features), dtype)
        for one, code in zip(drawn, codes, strict=True):
            np.testing.assert_allclose(
                np.asarray(one, np.float64),
                np.asarray(vae.decode(code), np.float64),
                rtol=TOLERANCE[dtype],
                atol=TOLERANCE[dtype],
            )

    @settings(max_examples=5, deadline=None)
    @given(classes=st.integers(2, 5), count=st.integers(1, 6), dtype=TYPES, seed=st.integers(0, 99))
    def test_are_labelled_by_the_earlier_network_whatever_its_classes_are_called(self, classes, count, dtype, seed):
        vae, net = cast((VAE, eqx.nn.Linear(16, classes, key=KEY)), dtype)
        f, key = lambda w, x: w(x.reshape(-1)), jax.random.key(seed)
        images, soft = generative.replayed(vae, f, net, count, key=key)
        again, hard = generative.replayed(vae, f, net, count, soft=False, key=key)
        assert images.shape == (count, 1, 4, 4)
        np.testing.assert_array_equal(images, again)
        assert soft.dtype == jnp.float32
        assert jnp.issubdtype(hard.dtype, jnp.integer)
        for image, p, label in zip(images, soft, hard, strict=True):
            logits = np.asarray(f(net, image), np.float64)
            np.testing.assert_allclose(p, np.exp(logits) / np.exp(logits).sum(), rtol=10 * TOLERANCE[dtype])
            assert logits[label] >= logits.max() - TOLERANCE[dtype]
        new = np.random.default_rng(seed).permutation(classes)
        other = jax.tree.map(lambda x: jnp.zeros_like(x).at[new].set(x), net)
        np.testing.assert_allclose(generative.replayed(vae, f, other, count, key=key)[1][:, new], soft, rtol=1e-5)

    def test_of_a_task_have_labels_among_its_classes(self):
        net, masks = eqx.nn.Linear(16, 5, key=KEY), jnp.asarray(rivals.class_masks([(4, 0), (1, 3, 2)], 5))
        for mask in masks:
            f = lambda w, x, mask=mask: rivals.told(w(x.reshape(-1)), mask)  # noqa: E731
            images, soft = generative.replayed(VAE, f, net, 6, key=KEY)
            again, hard = generative.replayed(VAE, f, net, 6, soft=False, key=KEY)
            np.testing.assert_array_equal(images, again)
            assert not np.asarray(soft)[:, ~np.asarray(mask)].any()
            assert np.asarray(mask)[np.asarray(hard)].all()

    def test_differ_by_the_key(self):
        assert not jnp.array_equal(generative.sample(VAE, 5, key=KEY), generative.sample(VAE, 5, key=jax.random.key(1)))

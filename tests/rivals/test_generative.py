"""Generative replay: the bound, what is drawn, and that it learns."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from wmlib.rivals import generative

KEY = jax.random.key(0)
VAE = generative.VAE((1, 4, 4), 2, (3,), key=KEY)
X = jnp.sign(jax.random.normal(KEY, (8, 1, 1, 1))) * jnp.ones((8, 1, 4, 4))


def test_kl_is_the_integral():
    z = jnp.linspace(-12, 12, 20001)
    p, q = norm.logpdf(z), norm.logpdf(z, 0.7, np.exp(-0.4))
    exact = jnp.sum(jnp.exp(q) * (q - p)) * (z[1] - z[0])
    np.testing.assert_allclose(generative.kl(jnp.array([0.7]), jnp.array([-0.8])), exact, rtol=1e-3)


def test_training_raises_the_bound_and_a_key_says_all():
    loss = eqx.filter_jit(eqx.filter_value_and_grad(lambda vae, key: -generative.elbo(vae, X, key=key)))
    vae, first = VAE, loss(VAE, KEY)[0]
    assert first == loss(VAE, KEY)[0]
    for i in range(30):
        gradient = loss(vae, jax.random.key(i))[1]
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))
        vae = eqx.apply_updates(vae, jax.tree.map(lambda g: -0.01 * g, gradient))
    assert loss(vae, KEY)[0] < first


def test_replayed_images_are_labelled_by_the_earlier_network():
    net = eqx.nn.Linear(16, 3, key=KEY)
    f = lambda w, x: w(x.reshape(-1))  # noqa: E731
    images, soft = generative.replayed(VAE, f, net, 5, key=KEY)
    again, hard = generative.replayed(VAE, f, net, 5, soft=False, key=KEY)
    assert images.shape == (5, 1, 4, 4)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(soft.argmax(1), hard)
    assert jnp.issubdtype(hard.dtype, jnp.integer)
    assert not jnp.array_equal(images, generative.sample(VAE, 5, key=jax.random.key(1)))

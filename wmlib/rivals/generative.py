"""Generative replay: images of earlier tasks are not stored, but drawn from a model of them."""

import itertools
from collections.abc import Callable
from typing import Any, SupportsIndex, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from .._counts import check_count
from ..models._sizes import check_image, check_in_shape, check_sizes
from ..paths.checks import logits_of, wide


@final
class VAE(eqx.Module):
    """A variational autoencoder of images: `q(z|x) = N(μ(x), diag σ²(x))`, and `p(x|z) = N(decode(z), s² I)`.

    The spread `s` of the pixels is one weight, so that images of any unit need no setting. The paper's generator is an
    adversarial one; this is smaller and has a loss.

    **Reference:** Kingma & Welling (2014), Auto-Encoding Variational Bayes.
    """

    down: tuple[eqx.nn.Conv2d, ...]
    code: eqx.nn.Linear
    start: eqx.nn.Linear
    up: tuple[eqx.nn.ConvTranspose2d, ...]
    log_spread: Float[Array, ""]
    in_shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (3, 32, 32),
        latent: int = 32,
        widths: tuple[int, ...] = (16, 32),
        *,
        key: PRNGKeyArray,
    ):
        """**Arguments:** `in_shape`, (channels, height, width) of an image; `latent`, the length of `z`; `widths`, of the
        convolutions, each of which halves height and width; `key`, for the initial weights.

        **Raises:** `ValueError` if a size is not positive, or height or width cannot be halved so often.
        """
        check_in_shape(in_shape)
        check_sizes(in_shape=in_shape, latent=latent, widths=widths)
        channels, height, width = in_shape
        shrink = 2 ** len(widths)
        if not widths or height % shrink or width % shrink:
            raise ValueError(
                f"widths has {len(widths)} convolutions: there must be at least one, and height and width must be multiples of {shrink},"
                f" got {height} × {width}; give fewer widths, or pad the images"
            )
        sizes, keys = (channels, *widths), jax.random.split(key, 2 * len(widths) + 2)
        flat = widths[-1] * (height // shrink) * (width // shrink)
        pairs = [*itertools.pairwise(sizes)]
        self.down = tuple(eqx.nn.Conv2d(a, b, 4, 2, 1, key=k) for (a, b), k in zip(pairs, keys[2:], strict=False))
        self.up = tuple(
            eqx.nn.ConvTranspose2d(b, a, 4, 2, padding=1, key=k)
            for (a, b), k in zip(pairs[::-1], keys[2 + len(widths) :], strict=True)
        )
        self.code = eqx.nn.Linear(flat, 2 * latent, key=keys[0])
        self.start = eqx.nn.Linear(latent, flat, key=keys[1])
        self.log_spread = jnp.zeros(())
        self.in_shape = in_shape

    def encode(self, x: Float[Array, "channels height width"]) -> tuple[Float[Array, " z"], Float[Array, " z"]]:
        """`μ(x)` and `ln σ²(x)` of one image."""
        check_image(x, self.down[0].in_channels)
        if x.shape != self.in_shape:
            raise ValueError(
                f"the image has shape {x.shape}, not {self.in_shape}; give in_shape the size of the images"
            )
        h = x
        for layer in self.down:
            h = jax.nn.relu(layer(h))
        mean, log_variance = jnp.split(self.code(h.reshape(-1)), 2)
        return mean, log_variance

    def decode(self, z: Float[Array, " z"]) -> Float[Array, "channels height width"]:
        """The mean image of a code."""
        shrink = 2 ** len(self.up)
        h = self.start(z).reshape(-1, self.in_shape[1] // shrink, self.in_shape[2] // shrink)
        for layer in self.up:
            h = layer(jax.nn.relu(h))
        return h


def kl(mean: Float[Array, " z"], log_variance: Float[Array, " z"]) -> Float[Array, ""]:
    """`KL(N(μ, diag σ²) ‖ N(0, I)) = ½ Σ (μ² + σ² − 1 − ln σ²)`, in float32 at least."""
    mean, log_variance = wide(mean), wide(log_variance)
    return jnp.sum(mean**2 + jnp.expm1(log_variance) - log_variance) / 2


def elbo(vae: VAE, images: Float[Array, "n channels height width"], *, key: PRNGKeyArray) -> Float[Array, ""]:
    r"""The mean of `ln p(x|z) − KL(q(z|x) ‖ p(z))`, with one draw `z = μ + σ ε` an image: a lower bound of `ln p(x)`.

    A generator of several tasks is trained by `r elbo(vae, new) + (1 − r) elbo(vae, replayed)`, where the replayed images
    are drawn from the earlier generator, and `r` is the share of the new task, `1/t` at task `t`.

    **Arguments:** `vae`; `images`, best standardised; `key`, for `ε`.

    **Raises:** `ValueError` for images of another shape than the VAE's.

    **Reference:** Kingma & Welling (2014), Eq. 10; Shin et al. (2017), Eq. 1, for the sum.
    """

    def one(x, key):
        mean, log_variance = vae.encode(x)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)
        off, spread = wide(x - vae.decode(z)), wide(vae.log_spread)
        fit = jnp.sum((off / jnp.exp(spread)) ** 2) / 2 + off.size * (spread + jnp.log(2 * jnp.pi) / 2)
        return -fit - kl(mean, log_variance)

    return jnp.mean(jax.vmap(one)(images, jax.random.split(key, len(images))))


def sample(vae: VAE, count: SupportsIndex, *, key: PRNGKeyArray) -> Float[Array, "n channels height width"]:
    """So many images, the decoded means of `z` drawn from `N(0, I)`; no noise of the pixels is added.

    **Raises:** `ValueError` for a count that is not positive.
    """
    count = check_count("count, of images,", count)
    return jax.vmap(vae.decode)(jax.random.normal(key, (count, int(vae.start.in_features)), vae.start.weight.dtype))


def replayed(
    vae: VAE, f: Callable[..., Any], weights: PyTree, count: SupportsIndex, *, soft: bool = True, key: PRNGKeyArray
) -> tuple[Float[Array, "n channels height width"], Shaped[Array, "n *classes"]]:
    """Images of earlier tasks from the earlier generator, and what the earlier network says of them.

    **Arguments:** `vae` and `weights`, those that ended the earlier task; `f`, called as `f(weights, x)`, returns logits (told
    a task, those of its head: the same key draws the same images for another); `count`; `soft`, whether the labels are
    probabilities, or the classes of the largest; `key`.

    **Returns:** the images, and labels of shape `(n, classes)`, or integers of shape `(n,)`.

    **Raises:** as `sample`; `TypeError` for an `f` that does not return logits.

    **Reference:** Shin et al. (2017), Continual Learning with Deep Generative Replay, section 3.1, with the largest.
    """
    images = sample(vae, count, key=key)
    logits = logits_of(f, weights, images)
    return images, jax.nn.softmax(logits) if soft else logits.argmax(-1)

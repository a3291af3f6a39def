"""Generative replay: images of earlier tasks are not stored, but drawn from a model of them."""

import itertools
import math
from collections.abc import Callable
from typing import Any, SupportsIndex, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from .._counts import check_count
from ..models._sizes import check_image, check_in_shape, check_sizes
from ..paths.checks import check_finite, logits_of, wide
from ..paths.precision import check_floating


@final
class VAE(eqx.Module):
    r"""A variational autoencoder of images: $q(z|x) = N(\mu(x), \mathrm{diag}\, \sigma^2(x))$ and $p(x|z) = N(d(z), s^2 I)$.

    Codes have $p(z) = N(0, I)$. The spread $s$ of the pixels is one weight, kept as $\ln s$, so that images of any unit need
    no setting. Shin et al. have an adversarial generator; this one is smaller and has a loss, `elbo`.

    **Example:**

        vae = wm.rivals.generative.VAE((1, 8, 8), latent=4, widths=(3, 5), key=key)
        mean, log_variance = vae.encode(jnp.ones((1, 8, 8)))
        image = vae.decode(mean)

    **Reference:** Kingma & Welling (2014), Auto-Encoding Variational Bayes; Shin et al. (2017), Continual Learning with Deep
    Generative Replay.
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
        """**Arguments:**

        - `in_shape`: (channels, height, width) of an image.
        - `latent`: the length of a code.
        - `widths`: of the convolutions, each of which halves height and width; at least one.
        - `key`: for the initial weights, those of Equinox.

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
        self.in_shape = (channels, height, width)

    def encode(self, x: Float[Array, "channels height width"]) -> tuple[Float[Array, " z"], Float[Array, " z"]]:
        r"""$\mu(x)$ and $\ln \sigma^2(x)$ of one image, each of shape `(latent,)`.

        **Raises:** `ValueError` for an image of another shape than `in_shape`.
        """
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
        r"""$d(z)$, the mean image of one code, of shape `in_shape`.

        **Raises:** `ValueError` for a code of another shape than `(latent,)`.
        """
        if z.shape != (self.start.in_features,):
            raise ValueError(
                f"a code has shape ({self.start.in_features},), got {z.shape}; give one of encode, and use jax.vmap for a"
                " batch"
            )
        shrink = 2 ** len(self.up)
        h = self.start(z).reshape(-1, self.in_shape[1] // shrink, self.in_shape[2] // shrink)
        for layer in self.up:
            h = layer(jax.nn.relu(h))
        return h


def kl(mean: Float[Array, " z"], log_variance: Float[Array, " z"]) -> Float[Array, ""]:
    r"""$KL(N(\mu, \mathrm{diag}\, \sigma^2) \| N(0, I)) = \frac{1}{2} \sum_j (\mu_j^2 + \sigma_j^2 - 1 - \ln \sigma_j^2)$.

    **Arguments:** `mean`, $\mu$, and `log_variance`, $\ln \sigma^2$, of one image, each of shape `(latent,)`.

    **Returns:** the divergence of the code from its prior, in nats and in float32 at least.

    **Raises:** `ValueError` for two shapes; `TypeError` for other than real floating-point numbers.

    **Example:**

        vae = wm.rivals.generative.VAE((1, 8, 8), latent=4, widths=(3, 5), key=key)
        nats = wm.rivals.generative.kl(*vae.encode(jnp.ones((1, 8, 8))))

    **Reference:** Kingma & Welling (2014), appendix B.
    """
    check_floating("mean and log_variance", (mean, log_variance))
    if mean.shape != log_variance.shape:
        raise ValueError(
            f"each mean has one log_variance, got shapes {mean.shape} and {log_variance.shape}; give what vae.encode"
            " returns"
        )
    mean, log_variance = wide(mean), wide(log_variance)
    return jnp.sum(mean**2 + jnp.expm1(log_variance) - log_variance) / 2


def elbo(vae: VAE, images: Float[Array, "n channels height width"], *, key: PRNGKeyArray) -> Float[Array, ""]:
    r"""The mean over images of $\ln p(x|z) - KL(q(z|x) \| p(z))$, with one draw $z = \mu + \sigma \epsilon$ for each.

    Its expectation over $\epsilon \sim N(0, I)$ is a lower bound of $\ln p(x)$. A generator of several tasks is trained by
    $\rho$ `elbo(vae, new)` + $(1 - \rho)$ `elbo(vae, replayed)`: the replayed images are drawn from the earlier generator,
    and $\rho$ is the share of the new task, $1/t$ at task $t$ where all count alike.

    **Arguments:**

    - `vae`: the generator.
    - `images`: $x$, of shape `(n, channels, height, width)`, best standardised; of the type of the weights.
    - `key`: for $\epsilon$; the same key draws the same.

    **Returns:** the bound, in nats an image and in float32 at least. It is a density's: above 0 where pixels are certain.

    **Raises:** `ValueError` for no images, or images of another shape than the VAE's; `TypeError` for images of another type.

    **Example:**

        vae = wm.rivals.generative.VAE((1, 8, 8), latent=4, widths=(3, 5), key=key)
        images = jax.random.normal(key, (6, 1, 8, 8))
        loss, gradient = eqx.filter_value_and_grad(lambda vae: -wm.rivals.generative.elbo(vae, images, key=key))(vae)

    **Reference:** Kingma & Welling (2014), Eq. 10; Shin et al. (2017), Eq. 1, for the sum.
    """
    if images.ndim != 4 or images.shape[1:] != vae.in_shape or not len(images):
        raise ValueError(
            f"images must have the shape (n, {', '.join(map(str, vae.in_shape))}) with n of at least 1, got {images.shape};"
            " use image[None] for one, and give the VAE's in_shape the size of the images"
        )
    if images.dtype != vae.start.weight.dtype:
        raise TypeError(
            f"images must be of the type of the weights, {vae.start.weight.dtype}, got {images.dtype}; convert them by"
            " images.astype(vae.start.weight.dtype)"
        )

    def one(x, key):
        mean, log_variance = vae.encode(x)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)
        off, spread = wide(x) - wide(vae.decode(z)), wide(vae.log_spread)
        fit = jnp.sum((off / jnp.exp(spread)) ** 2) / 2 + off.size * (spread + math.log(2 * math.pi) / 2)
        return -fit - kl(mean, log_variance)

    return jnp.mean(jax.vmap(one)(images, jax.random.split(key, len(images))))


def sample(vae: VAE, count: SupportsIndex, *, key: PRNGKeyArray) -> Float[Array, "n channels height width"]:
    r"""So many images $d(z)$, the decoded means of $z \sim N(0, I)$; no noise of the pixels is added.

    **Arguments:** `vae`, the generator; `count`, $n$, at least 1; `key`, for $z$.

    **Returns:** the images, of shape `(n, channels, height, width)`, in the unit and type of those that it learned from.

    **Raises:** `ValueError` for a count that is not positive, `TypeError` for one that is no integer.

    **Example:**

        vae = wm.rivals.generative.VAE((1, 8, 8), latent=4, widths=(3, 5), key=key)
        images = wm.rivals.generative.sample(vae, 16, key=key)

    **Reference:** Kingma & Welling (2014), section 2.
    """
    count = check_count("count, of images,", count)
    return jax.vmap(vae.decode)(jax.random.normal(key, (count, int(vae.start.in_features)), vae.start.weight.dtype))


def replayed(
    vae: VAE, f: Callable[..., Any], weights: PyTree, count: SupportsIndex, *, soft: bool = True, key: PRNGKeyArray
) -> tuple[Float[Array, "n channels height width"], Shaped[Array, "n *classes"]]:
    r"""Images $x = d(z)$ of earlier tasks from the earlier generator, and what the earlier network says of them.

    Labels are its probabilities $\mathrm{softmax}(f(w, x))$, as in distillation, or the classes of the largest.

    **Arguments:**

    - `vae`: the generator that ended the earlier task.
    - `f`: called as `f(weights, x)` for one image, returns logits. Told a task, those of its classes alone: the same key
      draws the same images for another task.
    - `weights`: $w$, those that ended the earlier task, any pytree.
    - `count`: $n$, how many, at least 1.
    - `soft`: whether labels are probabilities.
    - `key`: for $z$.

    **Returns:** the images, of shape `(n, channels, height, width)`, and labels, of shape `(n, classes)` and float32 at
    least, or integers of shape `(n,)`.

    **Raises:** as `sample`; `TypeError` for an `f` that does not return logits, `ValueError` for one that returns one logit,
    or logits that are not finite.

    **Example:**

        vae = wm.rivals.generative.VAE((1, 8, 8), latent=4, widths=(3, 5), key=key)
        net = wm.models.CNN((1, 8, 8), classes=4, widths=(2,), units=6, key=key)
        images, labels = wm.rivals.generative.replayed(vae, operator.call, net, 16, soft=False, key=key)
        loss = wm.rivals.replay_loss(operator.call, net, images, labels)

    **Reference:** Shin et al. (2017), section 3.1; Hinton et al. (2015), Distilling the Knowledge in a Neural Network.
    """
    images = sample(vae, count, key=key)
    logits = logits_of(f, weights, images)
    if logits.shape[1] < 2:
        raise ValueError("f returns one logit, whose softmax is 1 whatever it is; give it one output a class")
    check_finite("what f says of the images it is asked to label", logits)
    return images, jax.nn.softmax(logits) if soft else logits.argmax(-1)

"""How far apart two outputs of a network are: output distances, each with its Hessian at zero."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .._sharding import gathered
from .precision import refuse_complex, wide


def _real(x: Any) -> Array:
    """Numbers of which differences are taken and squares are summed: floating-point, of 32 bits at least."""
    x = gathered(jnp.asarray(x))
    refuse_complex("the outputs", x)
    return wide(x) if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


@final
class OutputDistance(eqx.Module):
    r"""A distance `d(y, y₀)` between two outputs of one input, with `d ≥ 0`, `d(y₀, y₀) = 0`, smooth at zero.

    Near zero it is `½ δᵀ H δ + O(|δ|³)` for `y = y₀ + δ`, and `H(y₀) = ∂²d/∂y²` is what a metric on the weights needs. If
    an `embedding` φ is given, `H = DφᵀDφ`: distances are then lengths in the space of φ.

    **Reference:** Raghavan et al. (2024), *output distance*, which leaves the choice open.
    """

    function: Callable[..., Float[Array, ""]] = eqx.field(static=True)
    embedding: Callable[..., Array] | None = eqx.field(static=True)

    def __init__(self, function: Callable[..., Float[Array, ""]], embedding: Callable[..., Array] | None = None):
        """**Arguments:**

        - `function`: `d(output, reference)`, two arrays of one shape to a scalar.
        - `embedding`: φ, an array to an array, with `H = DφᵀDφ`; without one the Hessian is found by differentiation.

        **Raises:** `TypeError` if either cannot be called.
        """
        if not callable(function) or not (embedding is None or callable(embedding)):
            raise TypeError("an output distance is made from a function of two outputs, d(output, reference)")
        self.function = function
        self.embedding = embedding

    def __call__(
        self, output: Shaped[Array | np.ndarray, "..."], reference: Shaped[Array | np.ndarray, "..."]
    ) -> Float[Array, ""]:
        """`d(output, reference)`, of one input: two arrays of one shape, of real numbers, in float32 at least.

        **Raises:** `ValueError` for two shapes, or a function that does not return one number; `TypeError` for complex
        outputs.
        """
        _check_pair("the reference", output, reference)
        found = self.function(_real(output), _real(reference))
        if jnp.shape(found) != ():
            raise ValueError(
                f"an output distance is of one input, and must return one number, got the shape {jnp.shape(found)}; sum over"
                " the axes of the output"
            )
        return wide(jnp.asarray(found))

    def hessian(
        self, reference: Shaped[Array | np.ndarray, "..."], vector: Shaped[Array | np.ndarray, "..."]
    ) -> Shaped[Array, "..."]:
        """The product `H(reference) vector` with the Hessian at zero, computed in float32 at least and then cast to the type
        of the vector, if that is one of floating-point numbers.

        **Raises:** as for a distance.
        """
        _check_pair("the vector", reference, vector)
        at, dtype = _real(reference), jnp.result_type(vector)
        along = _real(vector).astype(at.dtype)
        if self.embedding is not None:
            _, push = jax.linearize(self.embedding, at)
            product = jax.linear_transpose(push, at)(push(along))[0]
        else:
            product = jax.jvp(jax.grad(lambda y: self(y, at)), (at,), (along,))[1]
        return product.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else product


def _check_pair(name, output, other):
    if jnp.shape(output) != jnp.shape(other):
        raise ValueError(
            f"{name} must have the shape of the output, {jnp.shape(output)}, got {jnp.shape(other)}; reshape one of them, and"
            " use jax.vmap for a batch"
        )


def _root_of_softmax(y):
    return jnp.exp(jax.nn.log_softmax(y) / 2)


def _log_overlap(y, y0):
    """`ln Σ √(p q)` of the softmax over the last axis."""
    return jax.nn.logsumexp((jax.nn.log_softmax(y) + jax.nn.log_softmax(y0)) / 2, axis=-1)


def _kl(y, y0):
    logp, logq = jax.nn.log_softmax(y0), jax.nn.log_softmax(y)
    return jnp.sum(jnp.exp(logp) * (logp - logq))


# Named functions, not lambdas: a distance travels to other processes, with all that holds it.
def _squared_error(y, y0):
    return jnp.sum((y - y0) ** 2) / 2


def _itself(y):
    return y


def _twice_root_of_softmax(y):
    return 2 * _root_of_softmax(y)


def _hellinger(y, y0):
    return -jnp.sum(jnp.expm1(_log_overlap(y, y0)))


def _bhattacharyya(y, y0):
    return -jnp.sum(_log_overlap(y, y0))


squared_error = OutputDistance(_squared_error, embedding=_itself)
"""`½ |y − y₀|²`. The Hessian is the identity."""

kl = OutputDistance(_kl, embedding=_twice_root_of_softmax)
"""`Σ p₀ ln(p₀ / p)` of the softmax outputs. The Hessian is the Fisher matrix `F = diag(p) − p pᵀ`."""

hellinger = OutputDistance(_hellinger, embedding=_root_of_softmax)
"""`1 − Σ √(p p₀)`, the square of Hellinger's, of the softmax outputs. The Hessian is `F / 4`."""

bhattacharyya = OutputDistance(_bhattacharyya, embedding=_root_of_softmax)
"""`−ln Σ √(p p₀)` of the softmax outputs, the choice of the authors' code. The Hessian is `F / 4`."""

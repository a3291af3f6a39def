"""Which context an input comes from, when nobody says."""

from collections.abc import Callable
from functools import partial
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from .._calls import on_one_input
from .._counts import check_count
from .._sharding import gathered
from .modulation import Modulated, _wide


class InferredContext(eqx.Module):
    """The context that `infer_context` chose (`value`) and what it was chosen by (`stats`)."""

    value: Array
    stats: dict[str, Array]


def infer_context(
    net: Callable[..., Any],
    inputs: Shaped[Array, "inputs ..."],
    contexts: Shaped[Array, "candidates ..."],
    *,
    shared: bool = False,
    batch: SupportsIndex = 500,
) -> InferredContext:
    r"""The candidate context in which a classifier is surest: the least entropy of `p(· | x, s)`.

    For weights $\alpha$ over the candidates, $\min_\alpha H(\sum_j \alpha_j \, p(\cdot | x, s_j))$ is attained at a single
    candidate, because the entropy is concave: so each is looked at, and the surest one is the exact minimiser. Inputs that
    share one unknown context have one $\alpha$, and their entropies add up.

    No memory grows with inputs times candidates but that of the probabilities themselves: a `Modulated` network is built
    once for each candidate and batch, and anything else is called for one candidate and one batch at a time.

    **Arguments:**

    - `net`: called as `net(x, s)` for one input and one context, returns the logits of the classes. A function that is
      made anew for each call is compiled anew.
    - `inputs`: of shape `(inputs, …)`.
    - `contexts`: the candidates, of shape `(candidates, *context)`, such as an even grid.
    - `shared`: whether all inputs come from one context.
    - `batch`: how many inputs are looked at together.

    **Returns:** an `InferredContext`. `value` has the shape `(inputs, *context)`, or `*context` if `shared`. `stats` holds
    `index`, of the chosen candidates; `entropy`, in nats, in float32 at least, of shape `(inputs, candidates)`; `probabilities`, of shape
    `(inputs, candidates, classes)`; and `weights`, softmax of minus the entropy over the candidates (of minus the sum of
    the entropies if `shared`), for a softer choice: they are no posterior, since a network may be surest where it errs.

    **Raises:** `ValueError` without inputs or candidates, for logits that are not one vector, of one class, or not finite,
    for a `batch` that is not positive, and for contexts that the manifold of a `Modulated` network does not have;
    `TypeError` for logits that are no floating-point numbers.

    **Example:**

        found = wm.infer_context(net, images, jnp.arange(36) / 36)
        logits = jax.vmap(net)(images, found.value)

    **Reference:** Wortsman et al. (2020), Supermasks in Superposition, where the weights are what is mixed and one
    gradient of the entropy at the even mixture chooses; for mixed predictions the minimum itself costs no more.
    """
    if len(inputs) == 0:
        raise ValueError("there is no input whose context could be inferred")
    if len(contexts) == 0:
        raise ValueError("there is no candidate to choose from; give contexts of shape (candidates, *context)")
    batch = check_count("batch (500 is the default)", batch)
    if isinstance(net, Modulated):
        net.manifold.check(contexts)
        jax.vmap(net.manifold.basis)(contexts)  # one context too many axes is no error of `check`
    contexts, parts = gathered(jnp.asarray(contexts)), [inputs]
    if len(inputs) > batch:
        inputs = gathered(inputs)
        parts = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
    logits = jnp.concatenate([jnp.stack([gathered(_logits(net, x, s)) for s in contexts], axis=1) for x in parts])
    if logits.ndim != 3:
        raise ValueError(
            f"net(x, s) must return the logits of the classes, one vector; its shape is {logits.shape[2:]}"
        )
    if logits.shape[2] < 2:
        raise ValueError(
            f"the entropy of {logits.shape[2]} logit is 0 in every context, so that none can be chosen; let net(x, s) return"
            " a logit for each of at least two classes: for one logit z of a binary classifier, jnp.array([0, z])"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(
            f"net(x, s) must return floating-point logits, got {logits.dtype}; convert them by .astype(float)"
        )
    logits = logits.astype(_wide(logits.dtype))
    if not jnp.isfinite(logits).all():
        raise ValueError("some logits are not finite; look for a diverged network, or for NaN in the inputs")
    logp = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=2)
    total = entropy.sum(axis=0) if shared else entropy
    index = total.argmin(axis=-1)
    stats = {"index": index, "entropy": entropy, "probabilities": jnp.exp(logp), "weights": jax.nn.softmax(-total)}
    return InferredContext(contexts[index], stats)


@eqx.filter_jit
def _logits(
    net: Callable[..., Any], inputs: Shaped[Array, "inputs ..."], s: Shaped[Array, "..."]
) -> Shaped[Array, "inputs ..."]:
    """The outputs of one batch in one context; the weights of a manifold are built, once for all of the batch."""
    if isinstance(net, Modulated):
        return jax.vmap(partial(on_one_input, net.at(s), name="net", given="x"))(inputs)
    return jax.vmap(partial(on_one_input, net, name="net", given="x, s"), (0, None))(inputs, s)

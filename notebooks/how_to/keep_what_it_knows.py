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
# # Teach your classifier something new, and keep what it knows
#
# You have a text classifier in the form of Hugging Face: a folder with `config.json` and `model.safetensors`. It should learn new classes, without
# losing the old ones. This page loads it, walks along an invariant path, saves it, and loads it in `transformers` again. It reads in five
# minutes; {doc}`/notebooks/paths/continual` says what such a path is.
#
# You need `pip install "wmlib[pretrained]"`; `transformers` is used here to make a model, and to compare with it.
#
# ## A classifier to begin with
#
# So that this page runs anywhere, its classifier is a tiny BERT with random weights and its texts are made-up tokens: three old classes, two new
# ones, told by the second token. With your own model, skip this cell: `folder` is where it lies, and your tokenizer gives tokens and masks.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "A tiny BERT and made-up texts, 22 lines", "code_prompt_hide": "Hide the model and the texts"}
import tempfile

import numpy as np
import transformers

folder, taught = (tempfile.mkdtemp() for _ in range(2))
config = transformers.BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=16, num_labels=3,
)  # fmt: skip
transformers.set_seed(0)
transformers.utils.logging.disable_progress_bar()
transformers.BertForSequenceClassification(config).save_pretrained(folder)


def texts(classes, count, seed):
    """Tokens, masks and labels of made-up texts."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(classes, count).astype(np.int32)
    tokens = draw.integers(20, 50, (count, 12)).astype(np.int32)
    tokens[:, 0], tokens[:, 1] = 2, 5 + labels
    return {"tokens": tokens, "mask": np.ones_like(tokens)}, labels


# %% [markdown]
# ## Load
#
# A loaded network is an Equinox module. It is called on one text, and `jax.vmap` makes that many.

# %%
import equinox as eqx
import jax
import optax

import wmlib as wm

net = wm.models.load_pretrained(folder)


def f(net, x):
    """Logits of one text."""
    return net(x["tokens"], x["mask"])


@eqx.filter_jit
def say(net, inputs):
    """Logits of many."""
    return jax.vmap(f, (None, 0))(net, inputs)


def accuracy(net, inputs, labels):
    """The share of texts whose largest logit is the right one."""
    return float((say(net, inputs).argmax(axis=1) == labels).mean())


# %% [markdown]
# The random classifier knows nothing yet. It first learns its three classes, as yours has already.

# %%
old_inputs, old_labels = texts([0, 1, 2], 400, seed=1)
optimiser = optax.adamw(1e-3, weight_decay=0.01)
learn = wm.PenalisedDescent(optimiser, 0.0)  # no penalty: plain descent
task = wm.objectives.Task(f, old_inputs, old_labels, batch=16)
few = jax.tree.map(lambda x: x[:2], old_inputs)
how = dict(steps=150, record=[150], key=jax.random.key(0))
net = wm.walk(f, net, task, few, method=learn, **how).weights[-1]

old_test = texts([0, 1, 2], 200, seed=2)
print(f"old classes: {accuracy(net, *old_test):.0%}")
assert accuracy(net, *old_test) > 0.95

# %% [markdown]
# ## Walk
#
# Three things are needed:
#
# 1. **Room for the new classes**: a wider classifier, whose first rows are the old one's.
# 2. **A memory**: some texts that it knows. They need no labels; what is kept is what the network says of them.
# 3. **The new texts**, with labels behind the old ones.
#
# The penalty weighs the memory against the new task. Search it, and the learning rate, on held-out texts of both.

# %%
old, new = 3, 2
layer = net.head.classifier
wider = eqx.nn.Linear(layer.in_features, old + new, key=jax.random.key(1))
rows = lambda linear: (linear.weight, linear.bias)  # noqa: E731
values = [x.at[:old].set(y) for x, y in zip(rows(wider), rows(layer), strict=True)]
wider = eqx.tree_at(rows, wider, values)
start = eqx.tree_at(lambda net: net.head.classifier, net, wider)

new_inputs, new_labels = texts([3, 4], 400, seed=3)
task = wm.objectives.Task(f, new_inputs, new_labels, batch=16)
memory = jax.tree.map(lambda x: x[:100], old_inputs)
keep = wm.PenalisedDescent(optimiser, penalty=1.0, memory_batch=16)
how = dict(steps=150, record=[150], key=jax.random.key(2))
path = wm.walk(f, start, task, memory, method=keep, **how)
walked = path.weights[-1]

# %% [markdown]
# By default `wm.walk` keeps the logits, by their squared distance; `wm.distances` has others. To compare, the same walk without the penalty is
# fine-tuning.

# %%
new_test = texts([3, 4], 200, seed=4)
tuned = wm.walk(f, start, task, few, method=learn, **how).weights[-1]
for name, one in (("fine-tuning", tuned), ("the path", walked)):
    print(
        f"{name}: old {accuracy(one, *old_test):.0%}, new {accuracy(one, *new_test):.0%}"
    )
assert accuracy(tuned, *old_test) < 0.5 < 0.9 < accuracy(walked, *old_test)
assert accuracy(walked, *new_test) > 0.9

# %% [markdown]
# ## Save, and load in transformers
#
# `save_pretrained` writes a folder that `transformers` loads as its own. **Check:** its logits are those of the walked network.

# %%
import torch

wm.models.save_pretrained(walked, taught)
theirs = transformers.BertForSequenceClassification.from_pretrained(taught).eval()
inputs, _ = new_test
with torch.no_grad():
    tokens, mask = (torch.tensor(x).long() for x in inputs.values())
    logits = theirs(input_ids=tokens, attention_mask=mask).logits.numpy()
gap = abs(logits - np.asarray(say(walked, inputs))).max()
print(f"{theirs.config.num_labels} classes, largest difference {gap:.0e}")
assert theirs.config.num_labels == old + new
assert gap < 1e-5

# %% [markdown]
# Copy your tokenizer's files beside them, for `transformers.pipeline`. The saved classes are numbered; their names are yours to write
# into `config.json`, as `id2label`.
#
# ## When a step is too large
#
# - **A large model on a small device.** `moving=` of `wm.walk` takes a tree of booleans, True for what moves. With
#   `wm.rivals.lora.adapt` only thin factors move, and `wm.rivals.lora.merge` gives a plain network for saving.
# - **Recorded weights fill the memory.** `record=[steps]` keeps the two ends alone, and `observe=` keeps what you compute from the weights, such as
#   accuracies, in their place.
# - **Half precision.** A checkpoint in float16 or bfloat16 is walked in that type; cast it first where steps are small.

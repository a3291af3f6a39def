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
# # Teach your Hugging Face classifier something new, and keep what it knows
#
# You have a text classifier in the form of Hugging Face: a folder with `config.json`, `model.safetensors` and the files of a tokenizer. It should
# learn new classes, without losing the old ones. This page loads it, walks along an invariant path, saves it, and loads it in `transformers`
# again. It reads in five minutes; {doc}`/notebooks/paths/continual` says what such a path is.
#
# You need `pip install "wmlib[pretrained]"`, and `transformers` for your tokenizer.
#
# ## A classifier to begin with
#
# So that this page runs anywhere, its classifier is a tiny BERT and its texts are made up: seven words each, two of them of a topic. Here it
# learns three topics in `transformers`, from random weights, and is saved. With your own model, skip this cell: `folder` is where it lies.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "A tiny BERT, its tokenizer and made-up texts, 48 lines", "code_prompt_hide": "Hide the model and the texts"}
import tempfile

import numpy as np
import torch
import transformers

folder, taught = (tempfile.mkdtemp() for _ in range(2))
TOPICS = {
    "food": "bread soup cheese apple dinner",
    "sports": "goal match team race score",
    "weather": "rain cloud storm sun wind",
    "music": "song band piano choir tune",
    "travel": "train hotel map ticket beach",
}
OTHERS = "the a we was had with very good bad and so it today they after"


def texts(topics, count, seed):
    """Made-up texts of some topics, and which of all topics each is."""
    draw = np.random.default_rng(seed)
    labels, said = draw.choice([list(TOPICS).index(t) for t in topics], count), []
    for words in [list(TOPICS.values())[label] for label in labels]:
        both = draw.choice(words.split(), 2), draw.choice(OTHERS.split(), 5)
        said.append(" ".join(draw.permutation(np.concatenate(both))))
    return said, labels


special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
entries = [*special, *" ".join([OTHERS, *TOPICS.values()]).split()]
tokenizer = transformers.BertTokenizer({word: i for i, word in enumerate(entries)})
tokenizer.save_pretrained(folder)
names = dict(enumerate(["food", "sports", "weather"]))
config = transformers.BertConfig(
    vocab_size=len(entries), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=16, initializer_range=0.05,
    id2label=names,
)  # fmt: skip
transformers.set_seed(0)
transformers.utils.logging.disable_progress_bar()
model = transformers.BertForSequenceClassification(config)
optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
for step in range(150):
    said, labels = texts(names.values(), 16, seed=(1, step))
    batch = tokenizer(said, padding=True, return_tensors="pt")
    model(**batch, labels=torch.tensor(labels)).loss.backward()
    optimiser.step()
    optimiser.zero_grad()
model.save_pretrained(folder)

# %% [markdown]
# ## Four things from you
#
# 1. **The folder** of your classifier.
# 2. **A memory**: 100 texts like those that it knows. They need no labels: what is kept is what the network says of them.
# 3. **New texts**, with labels that stand behind the old ones: here 3 and 4, for two new topics.
# 4. **Held-out texts**, to measure what was kept.
#
# Your tokenizer turns all of them into arrays.

# %%
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)


def tokens(texts):
    """Tokens and masks of texts, as arrays (texts, length)."""
    how = dict(padding="max_length", truncation=True, max_length=12)
    return dict(tokenizer(texts, return_tensors="np", **how))


said, _ = texts(["food", "sports", "weather"], 100, seed=2)
memory = tokens(said)
said, new_labels = texts(["music", "travel"], 400, seed=3)
new = tokens(said)
old_said, old_labels = texts(["food", "sports", "weather"], 200, seed=4)
held_out = tokens(old_said)

# %% [markdown]
# ## Load, walk, save
#
# The loaded network is an Equinox module, called on one text. The classifier must be wider: a second load gives it five rows, drawn by a key,
# and the first three are overwritten with the old ones. Then the walk descends the loss of the new task, and a penalty times the distance of
# the memory's logits to those at the start.

# %%
import equinox as eqx
import jax
import optax

import wmlib as wm


def f(net, x):
    """Logits of one text."""
    return net(x["input_ids"], x["attention_mask"])


def rows(net):
    """What the classifier has for each class."""
    return net.head.classifier.weight, net.head.classifier.bias


# %%
net = wm.models.load_pretrained(folder)
start = wm.models.load_pretrained(folder, "classification", 5, jax.random.key(0))
wider = [x.at[: len(y)].set(y) for x, y in zip(rows(start), rows(net), strict=True)]
start = eqx.tree_at(rows, start, wider)

task = wm.objectives.Task(f, new, new_labels, batch=16)
optimiser = optax.adamw(2e-3, weight_decay=0.01)
method = wm.PenalisedDescent(optimiser, penalty=1.0, memory_batch=16)
distance = wm.distances.squared_error
how = dict(steps=300, record=[300], key=jax.random.key(1), held_out=held_out)
path = wm.walk(f, start, task, memory, distance, method=method, **how)
walked = path.weights[-1]
wm.models.save_pretrained(walked, taught)

# %% [markdown]
# The penalty weighs the memory against the new task. Search it, the learning rate and the steps on held-out texts of both;
# {py:mod}`wmlib.paths.distances` has other distances.
#
# ## What was kept
#
# The same walk with a penalty of zero is fine-tuning. Beside it:


# %%
@eqx.filter_jit
def say(net, inputs):
    """Logits of many texts."""
    return jax.vmap(f, (None, 0))(net, inputs)


def right(net, inputs, labels):
    """The share of texts whose largest logit is the right one."""
    return float((say(net, inputs).argmax(axis=1) == labels).mean())


free = wm.PenalisedDescent(optimiser, penalty=0.0)
tuned = wm.walk(f, start, task, memory, distance, method=free, **how)
said, test_labels = texts(["music", "travel"], 200, seed=5)
test = tokens(said)
for name, one in (("fine-tuning", tuned), ("the path", path)):
    old = right(one.weights[-1], held_out, old_labels)
    now = right(one.weights[-1], test, test_labels)
    print(f"{name}: old {old:.0%}, new {now:.0%}, function drift {one.drift[-1]:.2f}")

# %% [markdown]
# On the held-out texts of the old topics the path is right where fine-tuning is not, and its function drift, the mean distance of their logits
# to those at the start, is less than a tenth. Rate and steps were chosen, after a look, so that fine-tuning learns the new topics too: this page shows how
# it is done, and compares no methods. [Below](#when-something-else-serves-better) is what a real model said of them.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The text above, checked", "code_prompt_hide": "Hide the check"}
assert right(net, held_out, old_labels) > 0.95
assert right(walked, held_out, old_labels) > 0.95
assert right(walked, test, test_labels) > 0.9
assert right(tuned.weights[-1], held_out, old_labels) < 0.5
assert right(tuned.weights[-1], test, test_labels) > 0.9
assert path.drift[-1] < tuned.drift[-1] / 10

# %% [markdown]
# ## Load it in transformers
#
# `save_pretrained` wrote a folder that `transformers` loads as its own. **Check:** its logits are those of the walked network.

# %%
theirs = transformers.BertForSequenceClassification.from_pretrained(
    taught, id2label=dict(enumerate(TOPICS))
)
with torch.no_grad():
    logits = theirs.eval()(**{k: torch.tensor(x) for k, x in test.items()}).logits
gap = float(abs(logits.numpy() - np.asarray(say(walked, test))).max())
print(f"{theirs.config.num_labels} classes, largest difference {gap:.0e}")
assert gap < 1e-5

# %% [markdown]
# The names of the classes are not kept by the walk: they are given here, as `id2label`. Saved again, with the tokenizer beside it, the folder is
# what `transformers.pipeline` takes.

# %%
theirs.save_pretrained(taught)
tokenizer.save_pretrained(taught)
pipe = transformers.pipeline("text-classification", taught)
for text in ("they had bread and cheese today", "the band was very good"):
    print(f"{text}: {pipe(text)[0]['label']}")

# %% [markdown]
# ## When a step is too large
#
# - **A large model on a small device.** `moving=` of `wm.walk` takes a tree of booleans, True for what moves. With
#   `wm.rivals.lora.adapt` only thin factors and the classifier move, and `wm.rivals.lora.merge` gives a plain network for saving.
# - **Recorded weights fill the memory.** `record=[steps]` keeps the two ends alone, and `observe=` keeps what you compute from the weights, such as
#   accuracies, in their place.
# - **Half precision.** A checkpoint in float16 or bfloat16 is walked in that type; cast it first where steps are small.

# %% [markdown]
# ## When something else serves better
#
# The rows are of {doc}`/notebooks/paths/language`, where a pretrained model rated restaurants and learned films.

# %% tags=["remove-input"]
from IPython.display import Markdown

from wmlib.lab import pages
from wmlib.lab.runs import book_results, recorded_runs

rows = recorded_runs("language", "cpu", results=book_results())
ends = {
    what: 100 * rows.pivot(index="seed", columns="method", values=what)
    for what in ("yelp", "imdb", "mean")
}
said_of = {
    "replay": "**You have labels for the kept texts, and the new task counts more.** Replay, `wm.rivals.replay_loss`, trains on both. Beside the path it"
    " learned {imdb} of the films and kept {yelp} of the restaurants.",
    "LoRA with memory": "**The weights themselves must stay**, since one model serves several tasks. Put adapters into it, `wm.rivals.lora.adapt`, and walk them"
    " with the same memory, `moving=wm.rivals.lora.trainable(...)`: {mean} in the mean of both tasks.",
    "EWC": "**No text may be kept.** Elastic weight consolidation needs them once: {yelp} of the restaurants, {imdb} of the films; its strength has to be"
    " searched over powers of ten.",
    "LoRA": "**LoRA without a memory** is no way to keep anything: {yelp} of the restaurants and {imdb} of the films, at the best of seven rates.",
}


def beyond(method):
    """Differences to the path, in words."""
    gaps = {w: (ends[w][method] - ends[w]["FIP"]).dropna() for w in ends}
    return {w: pages.interval(gap, "points", count=False) for w, gap in gaps.items()}


Markdown("\n".join(f"- {text.format(**beyond(m))}" for m, text in said_of.items()))

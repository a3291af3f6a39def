"""Transformers from and to the files of Hugging Face: `config.json` and `model.safetensors`. No pickle is ever loaded."""

import json
import re
import warnings
from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .._counts import check_count
from .transformer import (
    HEADS,
    ClassificationHead,
    DistillationHead,
    MeanHead,
    TextEmbedding,
    Transformer,
    WordsHead,
    make_head,
)

CLASSES = {
    "BertForSequenceClassification": "classification",
    "BertForMaskedLM": "words",
    "BertForPreTraining": "words",
    "ViTForImageClassification": "classification",
    "DeiTForImageClassification": "classification",
    "DeiTForImageClassificationWithTeacher": "distillation",
    "BertModel": None,
    "ViTModel": None,
    "DeiTModel": None,
}
_NAMES = {"bert": "Bert", "vit": "ViT", "deit": "DeiT"}

# Settings under their names in config.json, and as arguments of `Transformer`.
_SETTINGS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "units",
    "layer_norm_eps": "epsilon",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
_TEXT = {"vocab_size": "vocabulary", "max_position_embeddings": "positions", "type_vocab_size": "types"}
# What the encoder does not have: the value that each setting must have where it stands in a config.json.
_ONLY = {
    "hidden_act": ("gelu", "gelu_python"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "quantization_config": (),
}

# Names of old files and of the library's newer classes, as rules for those of today's files.
_RENAMED = [
    (r"\bgamma$", "weight"),
    (r"\bbeta$", "bias"),
    (r"^(bert|vit|deit)\.", ""),
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.([qkv])_proj\.", lambda m: f".attention.attention.{dict(q='query', k='key', v='value')[m[1]]}."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
_WORDS, _DECODER = "embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
_BIAS, _DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
# Buffers, and heads beside the one that is read.
_IGNORED = re.compile(r"^(embeddings\.(position_ids|token_type_ids|mask_token)$|pooler\.|cls\.seq_relationship\.)")
_ENCODER = re.compile(r"^(embeddings|encoder|layernorm)\.")


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'files of pretrained networks need {name.split(".")[0]}, which is not installed: pip install "wmlib[pretrained]"',
            name=error.name,
        ) from error


def load_pretrained(
    source: str | PathLike[str], head: str | None = None, classes: int | None = None, key: PRNGKeyArray | None = None
) -> Transformer:
    """A `Transformer` with the weights of a BERT, ViT or DeiT checkpoint, in their floating-point type.

    **Arguments:**

    - `source`: a folder with `config.json` and `model.safetensors` (or its shards), or the name of a model of the
      Hugging Face hub, which is taken from its cache or fetched.
    - `head`: None for the checkpoint's own; else a new one: "classification", "mean" (see `Transformer`), "words" (for
      texts), "distillation" (for DeiT). The pooler of a new classification head is the checkpoint's, where it has one.
    - `classes`: of a new head.
    - `key`: for the weights of a new head.

    **Returns:** the network; without a `key` of its own, a call drops nothing.

    **Raises:** `ValueError` for no such folder or model, pickled weights, missing, surplus or misshapen ones (named),
    settings that the encoder does not have, and arguments that do not fit; `ModuleNotFoundError` without the extra
    `pretrained`.

    **Example:**

        net = wm.models.load_pretrained("folder", head="classification", classes=5, key=jax.random.key(0))

    **Reference:** Wolf et al. (2020), Transformers: State-of-the-Art Natural Language Processing.
    """
    folder = _folder(source)
    config = _read_json(folder / "config.json")
    settings = _settings(config)
    kind = "text" if "vocabulary" in settings else "image"
    if head is not None and head not in HEADS[kind]:
        raise ValueError(
            f"head must be one of {', '.join(HEADS[kind])} for a network of {kind}s, or None, got {head!r}"
        )
    if head is not None and (key is None or (classes is None) != (head == "words")):
        raise ValueError('a new head needs key=jax.random.key(0), and classes=...; head="words" takes no classes')
    if head is None and classes is not None:
        raise ValueError('classes belong to a new head; give head="classification" and a key')
    if classes is not None:
        check_count("classes", classes)
    weights = _renamed(_read_weights(folder))
    tied = config.get("tie_word_embeddings", True)
    own = _own_head(config, weights, kind) if head is None else head
    if own == "words" and head is None:
        weights = _tie(weights, tied)
    elif tied and _WORDS not in weights and _DECODER in weights:
        weights[_WORDS] = weights[_DECODER]
    if head is None:
        classes = _count_classes(config, weights)
    if own == "distillation" and settings.get("special") != ("class", "distillation"):
        raise ValueError('the head "distillation" needs DeiT\'s two tokens; give head="classification"')
    net = eqx.filter_eval_shape(
        lambda: Transformer(**settings, head=own, classes=classes or 2, tied=bool(tied), key=jax.random.key(0))
    )
    dtype = _common_dtype(weights)
    if head is not None:
        assert key is not None
        if kind == "text" and head == "classification" and "pooler.dense.weight" not in weights:
            warnings.warn("the checkpoint has no pooler: that of the new head is drawn by key, too", stacklevel=2)
        rate = settings["dropout"] if settings["head_dropout"] is None else settings["head_dropout"]
        vocabulary = settings.get("vocabulary")
        new = make_head(head, settings["width"], classes or 2, vocabulary, tied, settings["epsilon"], rate, key)
        net = eqx.tree_at(lambda net: net.head, net, jax.tree.map(lambda x: x.astype(dtype), new))
    return _fill(net, weights, dtype, new_head=head is not None)


def save_pretrained(net: PyTree, folder: str | PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors`, which the library `transformers` loads with the same logits.

    **Arguments:**

    - `net`: a `Transformer`: a BERT, ViT or DeiT with a head of theirs.
    - `folder`: where the two files go; it is made if it is not there.

    **Raises:** `ValueError`, by name, for what `transformers` has no class for: the mean of the tokens as head, a stem of
    convolutions, other norms or layers; `ModuleNotFoundError` without the extra `pretrained`.

    **Example:**

        wm.models.save_pretrained(net, "folder")
    """
    if not isinstance(net, Transformer):
        raise ValueError(
            f"save_pretrained takes a Transformer, got {type(net).__name__}; merge an adapted network, and take a"
            " modulated one at a context, net.at(s)"
        )
    other = ValueError(
        "the network has layers, shapes or rates of dropout that transformers has no class for; merge an adapted network,"
        " and take one of an ensemble"
    )
    for block in net.blocks:
        layers = [getattr(block.attention, name) for name in ("query", "key", "value", "output")]
        if any(type(layer) is not eqx.nn.Linear for layer in (*layers, block.feed_forward.up, block.feed_forward.down)):
            raise other
    config = _config(net)
    settings = _settings(config)
    own, tied = CLASSES[config["architectures"][0]], config.get("tie_word_embeddings", True)
    classes = len(config["id2label"]) if "id2label" in config else 2
    plain = eqx.filter_eval_shape(
        lambda: Transformer(**settings, head=own, classes=classes, tied=tied, key=jax.random.key(0))
    )
    if jax.tree.structure(plain) != jax.tree.structure(net):
        raise other
    if [x.shape for x in jax.tree.leaves(plain)] != [x.shape for x in jax.tree.leaves(net)]:
        raise other
    arrays = _arrays(net)
    numpy = _package("safetensors.numpy")
    if not tied:
        arrays[_DECODER_BIAS] = arrays[_BIAS]  # of two biases, `transformers` reads this one
    prefix, model = config["model_type"], {}
    for name, array in arrays.items():
        bare = re.match(r"(classifier|cls_classifier|distillation_classifier|cls)\.", name)
        array = np.ascontiguousarray(array)
        model[name if bare else f"{prefix}.{name}"] = array.reshape(_outer_shape(name, array.shape))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numpy.save_file(model, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _outer_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array in a file: tables of images have an axis for the batch, biases of convolutions none for space."""
    if name == "embeddings.patch_embeddings.projection.bias":
        return shape[:1]
    tables = {"embeddings.cls_token": 2, "embeddings.distillation_token": 2, "embeddings.position_embeddings": 1}
    return (1,) * tables.get(name, 0) + shape


def _folder(source: str | PathLike[str]) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not isinstance(source, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise ValueError(f"there is no folder {str(source)!r}; give that of config.json and model.safetensors")
    hub = _package("huggingface_hub")
    try:
        patterns = ["config.json", "*.safetensors", "*.safetensors.index.json"]
        return Path(hub.snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # of the network, of the hub or of its cache
        raise ValueError(
            f"{source!r} is no folder here, and the hub has not given a model of that name ({error}); see to the name and"
            " the network, or give the folder of its files"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no {path.name} in {path.parent}; give a folder that save_pretrained has written")
    try:
        read = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch the file again") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} must hold a table of names and values; fetch the file again")
    return read


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Transformer` that a `config.json` names.

    **Raises:** `ValueError` for a setting that is missing, or that the encoder does not have.
    """
    model = config.get("model_type")
    if model not in _NAMES:
        raise ValueError(
            f"model_type must be bert, vit or deit, got {model!r}; other encoders are not settings of Transformer"
        )
    for name, allowed in _ONLY.items():
        value = config.get(name)
        if value is not None and value not in allowed:
            raise ValueError(
                f"{name}={value!r} in config.json is a setting that the encoder does not have"
                + (f" (only {allowed[0]!r})" if allowed else "")
                + "; give a checkpoint without it"
            )
    images = ("num_channels", "image_size", "patch_size") if model != "bert" else ()
    wanted = ("hidden_act", *_SETTINGS, *(images or _TEXT))
    if missing := [name for name in wanted if config.get(name) is None]:
        raise ValueError(f"config.json does not say {', '.join(missing)}; add what the checkpoint was trained with")
    settings = {ours: config[name] for name, ours in _SETTINGS.items()}
    settings |= {name: float(settings[name]) for name in ("epsilon", "dropout", "attention_dropout")}
    head_dim = config.get("head_dim")
    if head_dim is not None and head_dim * settings["heads"] != settings["width"]:
        raise ValueError("head_dim in config.json is not hidden_size / num_attention_heads, which the encoder needs")
    if model == "bert":
        rate = config.get("classifier_dropout")
        settings["head_dropout"] = None if rate is None else float(rate)
        return settings | {ours: config[name] for name, ours in _TEXT.items()}
    sides = [[x, x] if isinstance(x, int) else list(x) for x in (config["image_size"], config["patch_size"])]
    special = ("class",) if model == "vit" else ("class", "distillation")
    return settings | dict(
        in_shape=(config["num_channels"], *sides[0]),
        patch=tuple(sides[1]),
        special=special,
        head_dropout=0.0,
        query_bias=config.get("qkv_bias", True),
    )


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder by their names, also those that its files only name as another's alias."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        places = {single.name: None}
    elif index.is_file():
        places = {}
        for name, file in _read_json(index).get("weight_map", {}).items():
            if Path(file).name != file:
                raise ValueError(f"{index} names {file!r}, which is not a file beside it; fetch the checkpoint again")
            places.setdefault(file, []).append(name)
        if absent := [file for file in places if not (folder / file).is_file()]:
            raise ValueError(f"{index.name} names shards that are not in {folder}: {', '.join(absent)}; fetch them")
    else:
        pickles = [path.name for path in sorted(folder.glob("*.bin"))]
        raise ValueError(
            f"there is no model.safetensors in {folder}"
            + (f", only {', '.join(pickles)}: a pickle, which can run any code and is never loaded" if pickles else "")
            + "; convert it: transformers.AutoModel.from_pretrained(folder).save_pretrained(folder) writes safetensors"
        )
    weights, safetensors = {}, _package("safetensors")
    for file, names in places.items():
        try:
            with safetensors.safe_open(folder / file, framework="numpy") as opened:
                stored = set(opened.keys())
                aliases = {a: b for a, b in (opened.metadata() or {}).items() if a not in stored and b in stored}
                if lost := [name for name in names or () if name not in stored | set(aliases)]:
                    raise ValueError(f"{file} does not hold {_listed(lost)}, which {index.name} says; fetch it again")
                tensors = {name: opened.get_tensor(name) for name in stored}
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{folder / file} is cut short or no safetensors file ({error}); fetch it again"
            ) from error
        weights |= tensors | {a: tensors[b] for a, b in aliases.items()}
    return weights


def _listed(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _renamed(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights under the names of today's files, without the prefix of the encoder."""
    renamed, before = {}, {}
    for name, array in weights.items():
        new = name
        for pattern, by in _RENAMED:
            new = re.sub(pattern, by, new)
        if new in renamed:
            raise ValueError(f"the checkpoint holds one weight twice, as {before[new]} and {name}; remove one of them")
        renamed[new], before[new] = array, name
    return renamed


def _own_head(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], kind: str) -> str:
    choices = f"give head= one of {', '.join(HEADS[kind])}, and a key"
    named = (config.get("architectures") or [None])[0]
    if named is not None and named not in CLASSES:
        raise ValueError(f"the checkpoint has the head of {named}, which Transformer does not have; {choices}")
    if named is not None:
        own = CLASSES[named]
    elif "cls_classifier.weight" in weights:
        own = "distillation"
    elif any(name.startswith("cls.predictions.") for name in weights):
        own = "words"
    else:
        own = "classification" if "classifier.weight" in weights else None
    if own is None:
        raise ValueError(f"the checkpoint has no head of its own; {choices}")
    return own


def _count_classes(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> int | None:
    """What the config says, or else how many rows the classifier has."""
    if config.get("id2label") or config.get("num_labels"):
        return len(config.get("id2label") or ()) or config["num_labels"]
    rows = [weights[name].shape[:1] for name in ("classifier.weight", "cls_classifier.weight") if name in weights]
    return rows[0][0] if rows and rows[0] else None


def _tie(weights: dict[str, np.ndarray], tied: bool) -> dict[str, np.ndarray]:
    """The weights with those of a masked-word head once each: a tied one under whichever name it is stored."""
    weights = dict(weights)
    first, second = weights.get(_BIAS), weights.get(_DECODER_BIAS)
    if first is not None and second is not None and tied and not np.array_equal(first, second):
        raise ValueError(f"{_BIAS} and {_DECODER_BIAS} differ and are one; remove the one that was not trained")
    if second is not None:
        weights[_BIAS] = weights.pop(_DECODER_BIAS)
    if tied and _DECODER in weights:
        decoder = weights.pop(_DECODER)
        if not np.array_equal(weights.setdefault(_WORDS, decoder), decoder):
            raise ValueError(
                f'{_DECODER} differs from {_WORDS}, and config.json says that they are tied; say "tie_word_embeddings":'
                " false there if both were trained, else remove the first"
            )
    return weights


def _common_dtype(weights: Mapping[str, np.ndarray]) -> Any:
    one_each = {array.dtype: array.reshape(-1)[:1] for name, array in weights.items() if not _IGNORED.match(name)}
    if strange := [name for name, array in weights.items() if not (_IGNORED.match(name) or _is_floating(array))]:
        raise ValueError(
            f"weights that are no floating-point numbers: {_listed(strange)}; give a checkpoint that is not quantised"
        )
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*one_each.values()) if one_each else jnp.dtype(jnp.float32)


def _is_floating(array: np.ndarray) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize >= 2


def _arrays(net: Transformer) -> dict[str, Any]:
    """The arrays of a network under the names of `transformers`, without the prefix of the encoder."""
    embedding, layers, arrays = net.embedding, {}, {}
    if isinstance(embedding, TextEmbedding):
        arrays["embeddings.position_embeddings.weight"] = embedding.positions
        layers["embeddings.word_embeddings"] = embedding.words
        layers["embeddings.token_type_embeddings"] = embedding.types
        layers["embeddings.LayerNorm"] = embedding.norm
        inner, norms = "attention.self", ("attention.output.LayerNorm", "output.LayerNorm")
    else:
        arrays["embeddings.position_embeddings"] = embedding.positions
        arrays["embeddings.cls_token"] = embedding.class_token
        arrays["embeddings.distillation_token"] = embedding.distillation_token
        layers["embeddings.patch_embeddings.projection"] = embedding.stem[0]
        inner, norms = "attention.attention", ("layernorm_before", "layernorm_after")
    for i, block in enumerate(net.blocks):
        at = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            layers[f"{at}.{inner}.{name}"] = getattr(block.attention, name)
        layers[f"{at}.attention.output.dense"] = block.attention.output
        layers[f"{at}.intermediate.dense"], layers[f"{at}.output.dense"] = (
            block.feed_forward.up,
            block.feed_forward.down,
        )
        layers[f"{at}.{norms[0]}"], layers[f"{at}.{norms[1]}"] = block.attention_norm, block.feed_forward_norm
    if net.norm is not None:
        layers["layernorm"] = net.norm
    layers |= _head_layers(net.head)
    if isinstance(net.head, WordsHead):
        arrays[_BIAS] = net.head.bias
        if net.head.decoder is not None:
            arrays[_DECODER] = net.head.decoder.weight
    for name, layer in layers.items():
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = layer.weight, getattr(layer, "bias", None)
    return {name: array for name, array in arrays.items() if array is not None}


def _head_layers(head: Any) -> dict[str, Any]:
    if isinstance(head, ClassificationHead):
        return {"classifier": head.classifier} | ({"pooler.dense": head.pooler} if head.pooler is not None else {})
    if isinstance(head, DistillationHead):
        return {"cls_classifier": head.classifier, "distillation_classifier": head.distillation_classifier}
    if isinstance(head, WordsHead):
        at = "cls.predictions.transform"
        return {f"{at}.dense": head.transform, f"{at}.LayerNorm": head.norm}
    return {"classifier": head.classifier}


def _fill(net: Transformer, weights: Mapping[str, np.ndarray], dtype: Any, new_head: bool) -> Transformer:
    """The network with the weights in place of its arrays; of a new head, only a pooler that the checkpoint has.

    **Raises:** `ValueError` that names the weights that are missing, surplus or misshapen.
    """
    wanted = _arrays(net)
    if new_head:
        pooler = {name for name in wanted if name.startswith("pooler.") and name in weights}
        wanted = {name: leaf for name, leaf in wanted.items() if _ENCODER.match(name) or name in pooler}
    missing = [name for name in wanted if name not in weights]
    surplus = [
        n for n in weights if n not in wanted and not _IGNORED.match(n) and not (new_head and not _ENCODER.match(n))
    ]
    misshapen = [
        f"{name} {weights[name].shape} in place of {_outer_shape(name, leaf.shape)}"
        for name, leaf in wanted.items()
        if name in weights and weights[name].shape != _outer_shape(name, leaf.shape)
    ]
    if missing or surplus or misshapen:
        kinds = {"missing": missing, "surplus": surplus, "misshapen": misshapen}
        said = "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)
        raise ValueError(
            f"the weights are not those that config.json describes ({said}); give the checkpoint's own config.json, or a new"
            " head by head= and key="
        )
    leaves = [jnp.asarray(weights[name].astype(dtype).reshape(leaf.shape)) for name, leaf in wanted.items()]
    places = list(wanted)
    return eqx.tree_at(lambda net: [_arrays(net)[name] for name in places], net, leaves)


def _config(net: Transformer) -> dict[str, Any]:
    """The `config.json` of a network; `ValueError` if `transformers` has no class for it."""
    embedding, block, head = net.embedding, net.blocks[0], net.head
    text = isinstance(embedding, TextEmbedding)
    stem: Any = () if isinstance(embedding, TextEmbedding) else embedding.stem
    none = "transformers has no class for {}; it is kept by equinox.tree_serialise_leaves"
    kinds = {ClassificationHead: "classification", WordsHead: "words", DistillationHead: "distillation"}
    if type(head) not in (MeanHead, *kinds):
        raise ValueError(none.format(f"the head {type(head).__name__}"))
    if isinstance(head, MeanHead):
        raise ValueError(none.format("the mean of the tokens as head (head='mean')"))
    if block.norm != ("post" if text else "pre"):
        raise ValueError(none.format(f"a network of {'texts' if text else 'images'} with norm={block.norm!r}"))
    if stem and (len(stem) > 1 or stem[0].kernel_size != stem[0].stride):
        raise ValueError(none.format("a stem of convolutions"))
    if not isinstance(embedding, TextEmbedding) and embedding.class_token is None:
        raise ValueError(none.format("images without a class token"))
    distilled = not isinstance(embedding, TextEmbedding) and embedding.distillation_token is not None
    model = "bert" if text else "deit" if distilled else "vit"
    ending = {"classification": "ForSequenceClassification" if text else "ForImageClassification"}
    ending |= {"words": "ForMaskedLM", "distillation": "ForImageClassificationWithTeacher"}
    width, units = block.feed_forward.up.in_features, block.feed_forward.up.out_features
    config = {
        "architectures": [_NAMES[model] + ending[kinds[type(head)]]],
        "model_type": model,
        "hidden_size": width,
        "num_hidden_layers": len(net.blocks),
        "num_attention_heads": block.attention.heads,
        "intermediate_size": units,
        "hidden_act": "gelu",
        "layer_norm_eps": block.attention_norm.epsilon,
        "hidden_dropout_prob": block.dropout,
        "attention_probs_dropout_prob": block.attention.dropout,
        "dtype": str(embedding.positions.dtype),
    }
    if text and isinstance(head, ClassificationHead):
        config["classifier_dropout"] = head.dropout
    if not isinstance(head, WordsHead):
        labels = [f"LABEL_{i}" for i in range(len(head.classifier.weight))]
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    if isinstance(embedding, TextEmbedding):
        tied = not isinstance(head, WordsHead) or head.decoder is None
        sizes = dict(vocab_size=embedding.words.num_embeddings, type_vocab_size=embedding.types.num_embeddings)
        return config | sizes | dict(max_position_embeddings=len(embedding.positions), tie_word_embeddings=tied)
    sides = [list(embedding.in_shape[1:]), list(stem[0].kernel_size)]
    sides = [side[0] if side[0] == side[1] else side for side in sides]
    return config | dict(
        num_channels=embedding.in_shape[0],
        image_size=sides[0],
        patch_size=sides[1],
        qkv_bias=block.attention.query.bias is not None,
    )

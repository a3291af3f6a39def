"""Texts as the tokens of a model's own tokenizer, cut and padded to one length."""

from . import _extra as _extra  # isort: split

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Int32

from .._counts import check_count
from .cache import cache_folder
from .data import _HUB, _INSTALLED, _MODES, load_dataset

# To be raised when the same texts and tokenizer give other arrays, so that no older file is taken for theirs.
_VERSION = 1
_ROWS = 2000  # tokenised together: an encoding holds much more than its numbers


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


class Texts(NamedTuple):
    """Tokens of texts or pairs of texts: `tokens, mask, types, labels = load_texts(…)`; and their `fingerprint`.

    All of int32 and of the shape `(rows, length)`: the tokens, where they are (1) and padding is (0), and to which half
    of a pair they belong (0 and 1, all 0 for single texts, as the tokenizer has it). Labels are those of
    `load_dataset`.
    """

    tokens: Int32[np.ndarray, "rows length"]
    mask: Int32[np.ndarray, "rows length"]
    types: Int32[np.ndarray, "rows length"]
    labels: Any

    @property
    def fingerprint(self) -> str:
        """The SHA-256 (16 hex digits) of all four, for a recorded row."""
        return _digest(*self)


class Words(NamedTuple):
    """Running text in blocks: `tokens, mask = load_words(…)`, of int32 and the shape `(blocks, length)`; and their
    `fingerprint`. The mask is 1 throughout, for no block is padded."""

    tokens: Int32[np.ndarray, "blocks length"]
    mask: Int32[np.ndarray, "blocks length"]

    @property
    def fingerprint(self) -> str:
        """The SHA-256 (16 hex digits) of both, for a recorded row."""
        return _digest(*self)


def load_texts(
    name: str, split: str, tokenizer: Any, length: SupportsIndex, size: SupportsIndex | None = None
) -> Texts:
    """Load a dataset of texts, or of pairs of texts, as tokens.

    Each text is turned into tokens by the model's own tokenizer, with the special tokens that it puts around a text or
    a pair, then cut to `length` (of a pair, the longer half first) and padded to it. An empty text is kept: it is its
    special tokens.

    What has been computed is kept in the folder `$WMLIB_CACHE`, by default `~/.cache/wmlib`, under a digest of the
    texts, the tokenizer and the length; its files may be deleted at any time.

    **Arguments:**

    - `name`, `split`: as for `load_dataset`, such as "sst2" or "mrpc" and "train".
    - `tokenizer`: a `tokenizers.Tokenizer`, a fast tokenizer of `transformers`, or a folder that holds
      `tokenizer.json`, as a saved model's does. It is not changed, and its own settings of length count for nothing;
      the token it pads with, and on which side, count.
    - `length`: of each row, special tokens included.
    - `size`: the number of rows to keep, from the first: default all.

    **Returns:** `Texts`, to be unpacked as `tokens, mask, types, labels`.

    **Raises:** `ValueError` for an unknown name or split, a dataset of images or of running text, a slow tokenizer or
    what is none, one that names no padding, a length with no room for a token beside the special ones, a size that is
    no count or more than there is, and a text of which no token is left; `ConnectionError` as `load_dataset`;
    `ModuleNotFoundError` if the package tokenizers is missing.

    **Example:**

        tokens, mask, types, labels = wm.load_texts("mrpc", "train", "my-model", 128)
        logits = jax.vmap(net)(tokens, mask, types)
    """
    _check_name(name, running=False)
    length, size = _check_counts(length, size, "rows")
    halves = len(_HUB[name][2])
    ours, settings = _own(tokenizer)
    special = ours.num_special_tokens_to_add(halves == 2)
    _check_room(length, special, halves)
    cut, pad = _lengths(ours, tokenizer, settings)
    ours.enable_truncation(length, strategy="longest_first", direction=cut)
    ours.enable_padding(length=length, **pad)
    data = load_dataset(name, split, size)

    def compute():
        parts = []
        for start in range(0, len(data.inputs), _ROWS):
            encodings = ours.encode_batch(data.inputs[start : start + _ROWS])
            parts.append([[getattr(e, f) for e in encodings] for f in ("ids", "attention_mask", "type_ids")])
        tokens, mask, types = (np.concatenate([np.asarray(x, np.int32) for x in xs]) for xs in zip(*parts, strict=True))
        return dict(tokens=tokens, mask=mask, types=types)

    arrays = _cached(("texts", data.fingerprint, ours.to_str(), length), compute, (len(data.inputs), length))
    if (empty := ~arrays["mask"].any(1)).any():
        row = int(empty.argmax())
        raise ValueError(
            f"row {row} of {name}/{split} has no token, {data.inputs[row]!r}, and the tokenizer adds none; leave such"
            " rows out, or give the tokenizer the post-processor that its model was trained with"
        )
    return Texts(**arrays, labels=data.labels)


def load_words(
    name: str, split: str, tokenizer: Any, length: SupportsIndex, size: SupportsIndex | None = None
) -> Words:
    """Load running text as tokens in blocks of one length.

    The lines are joined as they are (they carry their own ends), turned into tokens as one text, and cut into pieces
    that follow one another; each gets the special tokens that the model's tokenizer puts around a text ([CLS] … [SEP]
    of BERT, none where there are none), so that a block is an input as the model was trained on, and fills `length`
    with them. Words are masked for evaluation among the others: the special tokens stand in the same columns of all
    blocks. What does not fill the last block is left out.

    What has been computed is kept as by `load_texts`.

    **Arguments:**

    - `name`, `split`: as for `load_dataset`; "wikitext-2-raw-v1" is running text.
    - `tokenizer`: as for `load_texts`; it needs no padding.
    - `length`: of each block, special tokens included.
    - `size`: the number of blocks to keep, from the first: default all.

    **Returns:** `Words`, to be unpacked as `tokens, mask`.

    **Raises:** as `load_texts`, and `ValueError` for a dataset that is not running text, special tokens that do not
    stand around the text, and a text too short for one block.

    **Example:** `tokens, mask = wm.load_words("wikitext-2-raw-v1", "validation", "my-model", 128, size=500)`
    """
    _check_name(name, running=True)
    length, size = _check_counts(length, size, "blocks")
    ours, _ = _own(tokenizer)
    special = ours.num_special_tokens_to_add(False)
    _check_room(length, special, 1)
    ours.no_truncation()
    ours.no_padding()
    data = load_dataset(name, split)

    def compute():
        whole = np.asarray(ours.encode("".join(data.inputs), add_special_tokens=False).ids, np.int32)
        first, last = _around(ours, data.inputs)
        blocks = whole[: len(whole) // (length - special) * (length - special)].reshape(-1, length - special)
        ends = (np.broadcast_to(np.asarray(end, np.int32), (len(blocks), len(end))) for end in (first, last))
        before, after = ends
        return dict(tokens=np.concatenate([before, blocks, after], axis=1))

    tokens = _cached(("words", data.fingerprint, ours.to_str(), length), compute, (None, length))["tokens"]
    if len(tokens) < (size or 1):
        raise ValueError(
            f"{name}/{split} fills {len(tokens)} blocks of length={length}, fewer than size={size or 1}; ask for at"
            " most that many, or for shorter ones"
        )
    tokens = tokens[:size]
    return Words(tokens, np.ones_like(tokens))


def _around(ours: Any, lines: list[str]) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    for line in lines:
        bare = ours.encode(line, add_special_tokens=False).ids
        if bare:
            break
    else:
        return [], []
    dressed = ours.encode(line, add_special_tokens=True).ids
    for before in range(len(dressed) - len(bare) + 1):
        if dressed[before : before + len(bare)] == bare:
            return dressed[:before], dressed[before + len(bare) :]
    raise ValueError(
        "the tokenizer does not put its special tokens before and after a text, but within it; give it a post-processor"
        " that does, such as tokenizers.processors.TemplateProcessing"
    )


def _check_name(name: str, running: bool) -> None:
    """Raise `ValueError` unless it names a dataset of the kind."""
    kinds = dict.fromkeys((*_INSTALLED, *_MODES), "images")
    kinds |= {own: "running text" if _HUB[own][3] is None else "texts" for own in _HUB if own not in _MODES}
    wanted = "running text" if running else "texts"
    if kinds.get(name) != wanted:
        is_other = f"{name} is a dataset of {kinds[name]}" if name in kinds else f"there is no dataset {name!r}"
        loads = {"images": "load_dataset", "texts": "load_texts", "running text": "load_words"}
        instead = f" (wm.{loads[kinds[name]]} loads this one)" if name in kinds else ""
        among = ", ".join(own for own, kind in kinds.items() if kind == wanted)
        raise ValueError(f"{is_other}; choose one of {wanted}: {among}{instead}")


def _check_counts(length: Any, size: Any, of: str) -> tuple[int, int | None]:
    length = check_count("length, which counts the tokens of a row,", length)
    return length, None if size is None else check_count(f"size (None for all {of})", size)


def _check_room(length: int, special: int, halves: int) -> None:
    """Raise `ValueError` unless a token of each half fits."""
    if length < special + halves:
        what = "a text" if halves == 1 else "each text of a pair"
        raise ValueError(
            f"length must be at least {special + halves}, got {length}: the tokenizer adds {special} special tokens,"
            f" and a token of {what} must fit; 128 is usual"
        )


def _own(tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """A copy of a tokenizer, which may be changed, and all that it says of itself."""
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'texts need the package tokenizers, which is not installed: pip install "wmlib[texts]"', name="tokenizers"
        ) from error
    if isinstance(tokenizer, (str, os.PathLike)):
        file = Path(tokenizer) / "tokenizer.json"
        if not file.is_file():
            raise ValueError(
                f"{os.fspath(tokenizer)!r} is no folder that holds tokenizer.json; give that of a saved model, or the"
                " tokenizer itself, such as transformers.AutoTokenizer.from_pretrained(...)"
            )
        try:
            text = file.read_text(encoding="utf-8")
            ours = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # what the package raises is an Exception and no more
            raise ValueError(f"{file} cannot be read as a tokenizer ({error}); copy or download it again") from error
    else:
        # A fast tokenizer of transformers stands on one of the package tokenizers.
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(backend, tokenizers.Tokenizer):
            kind = type(tokenizer).__name__
            slow = getattr(tokenizer, "is_fast", None) is False
            raise ValueError(
                f"{kind} is a slow tokenizer of transformers, which writes no tokenizer.json; load its fast form, such"
                " as transformers.AutoTokenizer.from_pretrained(...)"
                if slow
                else f"the tokenizer must be a tokenizers.Tokenizer, a fast tokenizer of transformers or a folder that"
                f" holds tokenizer.json, got {kind}"
            )
        if getattr(backend, "encode_special_tokens", False):
            raise ValueError(
                "the tokenizer splits special tokens that it finds in texts (encode_special_tokens, or split_special_tokens of"
                " transformers), which its tokenizer.json cannot hold; set that to False"
            )
        try:
            text = backend.to_str()
            ours = tokenizers.Tokenizer.from_str(text)
        except Exception as error:
            raise ValueError(
                f"the tokenizer cannot be copied ({error}); leave out its parts that are written in Python, which no"
                " tokenizer.json can hold"
            ) from error
    return ours, json.loads(text)


def _lengths(ours: Any, tokenizer: Any, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """On which side the tokenizer cuts; and what it pads with, and on which side, as `enable_padding` takes it.

    What an object of `transformers` says of itself comes first, then what the tokenizer says, then what `transformers`
    has written beside it.

    **Raises:** `ValueError` if it does not say what it pads with, or names a token that it does not have.
    """
    cutting, padding = (settings.get(k) or {} for k in ("truncation", "padding"))
    written = {}
    if isinstance(tokenizer, (str, os.PathLike)):
        with contextlib.suppress(OSError, ValueError):  # a tokenizer may lie there alone
            written = json.loads((Path(tokenizer) / "tokenizer_config.json").read_text(encoding="utf-8"))

    def said(name, own, otherwise=None):
        found = (getattr(tokenizer, name, None), own, written.get(name))
        return next((x for x in found if x is not None), otherwise)

    token = said("pad_token", padding.get("pad_token"))
    if isinstance(token, dict):
        token = token.get("content")
    if token is None:
        token = next((t for t in ("[PAD]", "<pad>") if ours.token_to_id(t) is not None), None)
    if token is None:
        raise ValueError(
            "the tokenizer names no token to pad with; say which, by tokenizer.enable_padding(pad_id=...,"
            " pad_token=...), or tokenizer.pad_token = tokenizer.eos_token in transformers"
        )
    number = ours.token_to_id(str(token))
    if number is None:
        raise ValueError(
            f"the tokenizer pads with {token!r}, which is none of its tokens; add it, by"
            f" tokenizer.add_special_tokens([{token!r}]), or pad with another"
        )
    return str(said("truncation_side", cutting.get("direction"), "right")).lower(), dict(
        pad_id=number,
        pad_token=str(token),
        pad_type_id=said("pad_token_type_id", padding.get("pad_type_id"), 0),
        direction=str(said("padding_side", padding.get("direction"), "right")).lower(),
    )


def _cached(
    key: tuple[Any, ...], compute: Callable[[], dict[str, np.ndarray]], shape: tuple[int | None, int]
) -> dict[str, np.ndarray]:
    """What `compute` returns, from a file of an earlier call if there is a sound one."""
    import tokenizers

    folder = cache_folder()
    digest = hashlib.sha256(json.dumps([_VERSION, tokenizers.__version__, *key]).encode()).hexdigest()
    path = folder / f"{key[0]}-{digest[:32]}.npz"
    if (arrays := _read(path, shape)) is not None:
        return arrays
    arrays = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Readers of the same name see the whole file or none, also where two processes write it.
        handle, partial = tempfile.mkstemp(dir=folder, prefix=path.stem, suffix=".part")
        try:
            with open(handle, "wb") as file:
                np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        warnings.warn(
            f"the tokens cannot be kept in {folder} ({error}), and are computed anew each time; set WMLIB_CACHE to a"
            " folder that can be written",
            stacklevel=3,
        )
    return arrays


def _read(path: Path, shape: tuple[int | None, int]) -> dict[str, np.ndarray] | None:
    names = {"texts": ["tokens", "mask", "types"], "words": ["tokens"]}[path.name.partition("-")[0]]
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except Exception:  # a damaged archive fails in many ways; whichever, the file is written again
        return None
    rows = arrays["tokens"].shape[0] if shape[0] is None and arrays["tokens"].ndim else shape[0]
    sound = all(x.dtype == np.int32 and x.shape == (rows, shape[1]) for x in arrays.values())
    return arrays if sound else None

"""Texts as tokens: what comes back, what is left of the caller's tokenizer, what is kept, and what is refused."""

import json
import os
import pathlib
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wmlib as wm

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "##s", ".", "=", "one", "two"]
PAD, UNK, CLS, SEP, MASK, A, GOOD, BAD, FILM, S, DOT, EQUALS, ONE, TWO = range(len(WORDS))


def wordpiece(special=True, names=WORDS):
    """A small tokenizer of BERT's kind."""
    numbers = {word: i for i, word in enumerate(names)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(numbers, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([word for word in names if word.startswith("[")])
    if special:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])],
        )
    return made


BERT = wordpiece()


def write(mirror, name, split, **columns):
    (mirror / name).mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), mirror / name / f"{split}.parquet")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WMLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mirror(tmp_path, cache, monkeypatch):
    """A dataset of texts, one of pairs, one of running text."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("WMLIB_DATA", str(folder))
    write(folder, "sst2", "train", sentence=["A good film.", "bad FILMS", "", "unheard"], label=[1, 0, 0, 1])
    write(
        folder,
        "mrpc",
        "train",
        sentence1=["good", "one one one one one", "a a"],
        sentence2=["bad film", "two", ""],
        label=[1, 0, 1],
    )
    lines = ["", " = one = \n", "", " a good film . \n", " two films . \n"]
    write(folder, "wikitext-2-raw-v1", "test", text=lines)
    return folder


def test_texts_are_cut_and_padded(mirror):
    tokens, mask, types, labels = data = wm.load_texts("sst2", "train", BERT, 6)
    wanted = [
        [CLS, A, GOOD, FILM, DOT, SEP],
        [CLS, BAD, FILM, S, SEP, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD],
        [CLS, UNK, SEP, PAD, PAD, PAD],
    ]
    np.testing.assert_array_equal(tokens, np.array(wanted, np.int32), strict=True)
    np.testing.assert_array_equal(mask, np.array(wanted, np.int32) != PAD)
    np.testing.assert_array_equal(types, np.zeros((4, 6)))
    assert {x.dtype for x in (tokens, mask, types, labels)} == {np.dtype(np.int32)}
    assert labels.tolist() == [1, 0, 0, 1]
    assert isinstance(data, wm.Texts)
    short = wm.load_texts("sst2", "train", BERT, 4, size=2)
    assert short.tokens.tolist() == [[CLS, A, GOOD, SEP], [CLS, BAD, FILM, SEP]]
    assert short.labels.tolist() == [1, 0]
    assert jax.tree.map(np.shape, short) == wm.Texts((2, 4), (2, 4), (2, 4), (2,))


def test_pairs_have_types_and_lose_from_the_longer_half(mirror):
    tokens, mask, types, _ = wm.load_texts("mrpc", "train", BERT, 7)
    assert tokens.tolist() == [
        [CLS, GOOD, SEP, BAD, FILM, SEP, PAD],
        [CLS, ONE, ONE, ONE, SEP, TWO, SEP],
        [CLS, A, A, SEP, SEP, PAD, PAD],
    ]
    assert types.tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0, 0]]
    assert mask.sum(1).tolist() == [6, 7, 5]


PLAIN = st.lists(st.sampled_from(["a", "good", "bad", "film", "one"]), max_size=9)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=5), length=st.integers(5, 24))
def test_what_is_kept_of_any_pair(mirror, pairs, length):
    halves = [[" ".join(half) for half in column] for column in zip(*pairs, strict=True)]
    write(mirror, "rte", "train", sentence1=halves[0], sentence2=halves[1], label=[0] * len(pairs))
    data = wm.load_texts("rte", "train", BERT, length)
    for tokens, mask, types, pair in zip(*data[:3], pairs, strict=True):
        kept = [tokens[(types == t) & (mask == 1)].tolist() for t in (0, 1)]
        kept = [kept[0][1:-1], kept[1][:-1]]
        whole = [[WORDS.index(word) for word in half] for half in pair]
        assert [k == w[: len(k)] for k, w in zip(kept, whole, strict=True)] == [True, True]
        lost = [len(w) - len(k) for k, w in zip(kept, whole, strict=True)]
        assert mask.sum() == min(length, 3 + len(whole[0]) + len(whole[1]))
        for half in (0, 1):  # nothing is lost of the shorter
            assert not lost[half] or len(kept[half]) >= len(kept[1 - half]) - 1
        assert (np.diff(mask) <= 0).all()
        assert set(tokens[mask == 0]) <= {PAD}


class Fast:
    """As a fast tokenizer of transformers, and what it says of itself."""

    is_fast = True

    def __init__(self, backend, **said):
        self.backend_tokenizer = backend
        self.__dict__.update(said)


def test_the_tokenizer_pads_and_cuts_as_its_own_kind_does(mirror):
    own = wordpiece()
    own.enable_padding(pad_id=MASK, pad_token="[MASK]", direction="left")
    own.enable_truncation(2, direction="left", strategy="only_first")
    before = own.to_str()
    tokens, mask, *_ = wm.load_texts("sst2", "train", own, 5)
    assert tokens[:2].tolist() == [[CLS, GOOD, FILM, DOT, SEP], [CLS, BAD, FILM, S, SEP]]
    assert tokens[2].tolist() == [MASK, MASK, MASK, CLS, SEP]
    assert mask[2].tolist() == [0, 0, 0, 1, 1]
    assert own.to_str() == before  # the caller's own is what it was

    said = Fast(own, pad_token="[PAD]", padding_side="right", truncation_side="right", pad_token_type_id=1)
    tokens, _, types, _ = wm.load_texts("sst2", "train", said, 5)
    assert tokens[0].tolist() == [CLS, A, GOOD, FILM, SEP]
    assert tokens[2].tolist() == [CLS, SEP, PAD, PAD, PAD]
    assert types[2].tolist() == [0, 0, 1, 1, 1]
    assert own.to_str() == before


def test_a_folder_of_a_saved_model(mirror, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    other = wordpiece(names=["<end>", *WORDS[1:]])  # no name that is known for padding
    other.save(str(folder / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"names no token to pad with; .*enable_padding"):
        wm.load_texts("sst2", "train", folder, 5)
    said = {"pad_token": {"content": "<end>"}, "padding_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    assert wm.load_texts("sst2", "train", folder, 5).tokens[2].tolist() == [0, 0, 0, CLS, SEP]
    assert wm.load_texts("sst2", "train", str(folder), 5).tokens[2].tolist() == [0, 0, 0, CLS, SEP]
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"names no token to pad with"):
        wm.load_texts("sst2", "train", folder, 5)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot be read as a tokenizer .*again"):
        wm.load_texts("sst2", "train", folder, 5)
    with pytest.raises(ValueError, match=r"no folder that holds tokenizer\.json.*AutoTokenizer"):
        wm.load_texts("sst2", "train", "bert-base-uncased", 5)


def test_as_transformers_does(mirror):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=BERT, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    for name, length in (("sst2", 4), ("sst2", 9), ("mrpc", 5), ("mrpc", 7), ("mrpc", 11)):
        inputs = wm.load_dataset(name, "train").inputs
        columns = [inputs] if name == "sst2" else [list(column) for column in zip(*inputs, strict=True)]
        wanted = theirs(*columns, padding="max_length", truncation="longest_first", max_length=length)
        tokens, mask, types, _ = wm.load_texts(name, "train", theirs, length)
        np.testing.assert_array_equal(tokens, wanted["input_ids"])
        np.testing.assert_array_equal(mask, wanted["attention_mask"])
        if "token_type_ids" in wanted:
            np.testing.assert_array_equal(types, wanted["token_type_ids"])


def test_running_text_in_blocks(mirror):
    # The whole: = one = a good film . two film ##s . ; eleven tokens.
    tokens, mask = data = wm.load_words("wikitext-2-raw-v1", "test", BERT, 6)
    assert tokens.tolist() == [[CLS, EQUALS, ONE, EQUALS, A, SEP], [CLS, GOOD, FILM, DOT, TWO, SEP]]
    np.testing.assert_array_equal(mask, np.ones((2, 6), np.int32), strict=True)
    assert tokens.dtype == np.int32
    assert isinstance(data, wm.Words)
    assert wm.load_words("wikitext-2-raw-v1", "test", BERT, 6, size=1).tokens.tolist() == tokens[:1].tolist()
    assert wm.load_words("wikitext-2-raw-v1", "test", BERT, 13).tokens.shape == (1, 13)  # with no rest
    bare = wm.load_words("wikitext-2-raw-v1", "test", wordpiece(special=False), 3).tokens
    assert bare.tolist() == [[EQUALS, ONE, EQUALS], [A, GOOD, FILM], [DOT, TWO, FILM]]
    with pytest.raises(ValueError, match=r"fills 2 blocks of length=6, fewer than size=3; ask"):
        wm.load_words("wikitext-2-raw-v1", "test", BERT, 6, size=3)
    with pytest.raises(ValueError, match=r"fills 0 blocks of length=14"):
        wm.load_words("wikitext-2-raw-v1", "test", BERT, 14)


def test_running_text_of_no_words_and_special_tokens_within(mirror):
    write(mirror, "wikitext-2-raw-v1", "test", text=["", " \n"])
    with pytest.raises(ValueError, match="fills 0 blocks"):
        wm.load_words("wikitext-2-raw-v1", "test", BERT, 6)
    write(mirror, "wikitext-2-raw-v1", "test", text=["a good film\n"])
    after = wordpiece()
    after.post_processor = tokenizers.processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", SEP)])
    assert wm.load_words("wikitext-2-raw-v1", "test", after, 3).tokens.tolist() == [[A, GOOD, SEP]]


def test_a_fingerprint_is_of_the_contents(mirror):
    one = wm.load_texts("sst2", "train", BERT, 6)
    assert one.fingerprint == wm.load_texts("sst2", "train", wordpiece(), 6).fingerprint
    assert len(one.fingerprint) == 16
    others = [one._replace(labels=1 - one.labels), one._replace(tokens=one.tokens + 1), one._replace(types=one.mask)]
    words = [wm.load_words("wikitext-2-raw-v1", "test", BERT, length) for length in (5, 6)]
    prints = {x.fingerprint for x in (one, *others, *words)}
    assert len(prints) == 6


class TestCache:
    def use(self, **changed):
        rest = dict(name="sst2", split="train", tokenizer=BERT, length=6) | changed
        return wm.load_texts(**rest)

    def test_is_read(self, mirror, cache):
        wanted = self.use()
        (file,) = cache.iterdir()
        other = {name: np.array(getattr(wanted, name)) for name in ("tokens", "mask", "types")}
        other["tokens"][0, 1] = TWO
        np.savez(file, **other)
        assert self.use().tokens[0, 1] == TWO
        assert [*cache.iterdir()] == [file]
        # Other texts, another length, another tokenizer: another file.
        self.use(size=3)
        self.use(length=7)
        self.use(tokenizer=wordpiece(names=[*WORDS, "unheard"]))
        assert len([*cache.iterdir()]) == 4
        write(mirror, "sst2", "train", sentence=["a", "a", "a", "a"], label=[1, 0, 0, 1])
        assert self.use().tokens[0].tolist() == [CLS, A, SEP, PAD, PAD, PAD]
        assert len([*cache.iterdir()]) == 5

    def test_is_shared_by_all_sizes_of_running_text(self, mirror, cache):
        for size in (None, 1, 2):
            wm.load_words("wikitext-2-raw-v1", "test", BERT, 6, size)
        assert len([*cache.iterdir()]) == 1

    @pytest.mark.parametrize("damage", ["cut off", "empty", "text", "flipped", "shape", "type", "name", "pickle"])
    def test_is_written_again_where_it_is_damaged(self, damage, mirror, cache, tmp_path):
        wanted = self.use()
        (file,) = cache.iterdir()
        whole, arrays = file.read_bytes(), {name: getattr(wanted, name) for name in ("tokens", "mask", "types")}
        if damage == "cut off":
            file.write_bytes(whole[: len(whole) // 2])
        if damage == "empty":
            file.write_bytes(b"")
        if damage == "text":
            file.write_text("not an archive")
        if damage == "flipped":
            middle = whole.index(b"NUMPY") if b"NUMPY" in whole else 60
            file.write_bytes(
                whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 30]) + whole[middle + 30 :]
            )
        if damage == "shape":
            np.savez(file, **(arrays | {"types": wanted.types[:, 1:]}))
        if damage == "type":
            np.savez(file, **(arrays | {"mask": wanted.mask.astype(bool)}))
        if damage == "name":
            np.savez(file, tokens=wanted.tokens)
        if damage == "pickle":
            trap = np.array([Trap(tmp_path / "sprung")], object)
            np.savez(file, **(arrays | {"tokens": trap}), allow_pickle=True)
        again = self.use()
        for a, b in zip(again, wanted, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
        assert file.read_bytes() != b""
        with np.load(file, allow_pickle=False) as kept:
            np.testing.assert_array_equal(kept["types"], wanted.types)
        assert not (tmp_path / "sprung").exists()

    def test_that_cannot_be_written_is_done_without(self, mirror, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("WMLIB_CACHE", str(tmp_path / "file"))
        with pytest.warns(UserWarning, match=r"cannot be kept in .*set WMLIB_CACHE"):
            assert self.use().tokens.shape == (4, 6)

    def test_leaves_nothing_behind_where_it_fails(self, mirror, cache, monkeypatch):
        def fail(*_):
            raise OSError("no space left")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.warns(UserWarning, match="no space left"):
            self.use()
        assert [*cache.iterdir()] == []

    def test_lies_in_the_home_folder(self, mirror, tmp_path, monkeypatch):
        monkeypatch.delenv("WMLIB_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        self.use()
        assert len([*(tmp_path / "home" / ".cache" / "wmlib").iterdir()]) == 1


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


LOADS = [
    ("sst2", wm.load_texts, 3),
    ("mrpc", wm.load_texts, 5),
    ("wikitext-2-raw-v1", wm.load_words, 3),
]


@pytest.mark.parametrize(("name", "load", "least"), LOADS)
def test_lengths_and_sizes(name, load, least, mirror):
    split = "test" if load is wm.load_words else "train"
    assert load(name, split, BERT, least).tokens.shape[1] == least
    with pytest.raises(ValueError, match=rf"length must be at least {least}, got {least - 1}: .*special tokens"):
        load(name, split, BERT, least - 1)
    with pytest.raises(ValueError, match=r"length, which counts .* must be at least 1, got 0"):
        load(name, split, BERT, 0)
    with pytest.raises(ValueError, match=r"use int\(\.\.\.\)"):
        load(name, split, BERT, True)
    with pytest.raises(ValueError, match=r"size \(None for all (rows|blocks)\) must be at least 1, got 0"):
        load(name, split, BERT, 9, 0)
    with pytest.raises(ValueError, match=r"fewer than size=99; ask for at most that many"):
        load(name, split, BERT, 9, 99)
    with pytest.raises(ValueError, match=r"has no split 'dev'"):
        load(name, "dev", BERT, 9)


def test_names_of_another_kind(mirror):
    with pytest.raises(ValueError, match=r"no dataset 'sst3'; choose one of texts: imdb, .*sst2"):
        wm.load_texts("sst3", "train", BERT, 6)
    with pytest.raises(ValueError, match=r"no dataset 'sst3'; choose one of running text: wikitext-2-raw-v1"):
        wm.load_words("sst3", "train", BERT, 6)
    for name in ("mnist5k", "cifar10"):
        with pytest.raises(ValueError, match=rf"{name} is a dataset of images; .*wm\.load_dataset"):
            wm.load_texts(name, "train", BERT, 6)
        with pytest.raises(ValueError, match=rf"{name} is a dataset of images"):
            wm.load_words(name, "train", BERT, 6)
    with pytest.raises(ValueError, match=r"is a dataset of running text; .*wm\.load_words loads this one"):
        wm.load_texts("wikitext-2-raw-v1", "test", BERT, 6)
    with pytest.raises(ValueError, match=r"sst2 is a dataset of texts; .*wm\.load_texts loads this one"):
        wm.load_words("sst2", "train", BERT, 6)


def test_tokenizers_that_are_none(mirror, monkeypatch):
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(ValueError, match=r"is a slow tokenizer of transformers.*load its fast form"):
        wm.load_texts("sst2", "train", slow, 6)
    for odd in (None, 3, str.split):
        with pytest.raises(ValueError, match=r"must be a tokenizers\.Tokenizer, a fast tokenizer"):
            wm.load_texts("sst2", "train", odd, 6)
    own = wordpiece()
    own.pre_tokenizer = tokenizers.pre_tokenizers.PreTokenizer.custom(object())
    with pytest.raises(ValueError, match=r"cannot be copied .*written in Python"):
        wm.load_texts("sst2", "train", own, 6)
    odd = wordpiece()
    odd.enable_padding(pad_id=0, pad_token="<nothing>")
    with pytest.raises(ValueError, match=r"pads with '<nothing>', which is none of its tokens"):
        wm.load_texts("sst2", "train", odd, 6)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "wmlib\[texts\]"'):
        wm.load_texts("sst2", "train", BERT, 6)


def test_a_tokenizer_that_splits_special_tokens_is_refused(mirror):
    """Its file does not say so, and a copy would read "[SEP]" in a text as the token."""
    other = tokenizers.Tokenizer.from_str(BERT.to_str())
    other.encode_special_tokens = True
    with pytest.raises(ValueError, match=r"encode_special_tokens.*set that to False"):
        wm.load_texts("sst2", "train", other, 6)


def test_a_text_of_which_nothing_is_left(mirror):
    with pytest.raises(ValueError, match=r"row 2 of sst2/train has no token, '', .*leave such rows out"):
        wm.load_texts("sst2", "train", wordpiece(special=False), 6)
    assert wm.load_texts("sst2", "train", wordpiece(special=False), 1, size=2).tokens.tolist() == [[A], [BAD]]

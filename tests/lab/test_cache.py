"""Trained starting points are made once, whatever happens to the file or to the process."""

import functools
import multiprocessing

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.lab import cache


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WMLIB_CACHE", str(tmp_path))


def network(seed=0):
    return eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(seed))


def train(recipe):
    with (cache.cache_folder() / "calls").open("a") as file:  # not a list: its value would be part of the key
        file.write(".")
    return jax.tree.map(lambda x: x * recipe["scale"] if eqx.is_inexact_array(x) else x, network(recipe["seed"]))


def calls():
    return len((cache.cache_folder() / "calls").read_text())


def test_the_second_time_it_is_read_bit_for_bit(tmp_path):
    first, second = (cache.once("base", train, {"seed": 1, "scale": 0.1}, network()) for _ in range(2))
    assert calls() == 1
    assert eqx.tree_equal(first, second)
    assert eqx.tree_equal(first, train({"seed": 1, "scale": 0.1}))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".lock", ".weights"]


def test_another_recipe_or_other_code_is_another_starting_point():
    def also(recipe):
        return train(recipe | {"scale": 2.0})

    cache.once("base", train, {"seed": 1, "scale": 0.1}, network())
    cache.once("base", train, {"seed": 1, "scale": 0.2}, network())
    cache.once("base", also, {"seed": 1, "scale": 0.1}, network())
    assert calls() == 3


@given(where=st.floats(0, 1, exclude_max=True), cut=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_damaged_file_is_made_anew(tmp_path_factory, where, cut):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WMLIB_CACHE", str(folder))
        whole = cache.once("base", train, {"seed": 1, "scale": 0.1}, network())
        (path,) = folder.glob("*.weights")
        data = bytearray(path.read_bytes())
        at = int(where * len(data))
        path.write_bytes(data[:at] if cut else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert eqx.tree_equal(cache.once("base", train, {"seed": 1, "scale": 0.1}, network()), whole)


def test_wrong_arguments_are_refused_before_anything_is_made():
    recipe = {"seed": 1, "scale": 0.1}
    for name in ("", "../base", "a b"):
        with pytest.raises(ValueError, match="letters, digits"):
            cache.once(name, train, recipe, network())
    for odd in ({"seed": {1}}, {"seed": float("nan")}):
        with pytest.raises(ValueError, match="recipe must hold"):
            cache.once("base", train, odd, network())
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, network())
    with pytest.raises(ValueError, match="bfloat16 cannot be kept"):
        cache.once("base", train, recipe, half)
    assert not (cache.cache_folder() / "calls").exists()
    with pytest.raises(ValueError, match="another structure"):
        cache.once("base", train, recipe, eqx.nn.MLP(2, 3, 5, 1, key=jax.random.key(0)))


def test_what_is_kept_is_never_read_into_another_structure():
    def make(recipe):
        return {"a": np.ones(3), "b": np.zeros(3)}

    def like(names):
        return functools.reduce(lambda tree, name: {**tree, name: np.ones(3)}, names, {})

    assert set(cache.once("two", make, {}, like("ab"))) == {"a", "b"}
    for names in ("ba", "ab"):
        assert (cache.once("two", make, {}, like(names))["a"] == 1).all()
    for other in (like("az"), [np.ones(3)] * 2, {"a": np.ones(3), "b": {"q": np.ones(3)}}):
        with pytest.raises(ValueError, match="another structure"):
            cache.once("two", make, {}, other)


def test_the_folder_is_the_environments(monkeypatch, tmp_path):
    assert cache.cache_folder() == tmp_path
    monkeypatch.delenv("WMLIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache.cache_folder() == tmp_path / "other" / "wmlib"
    assert wm.lab.cache is cache


def slow(recipe):
    """Says in the folder that it was called."""
    import time

    (cache.cache_folder() / f"called-{time.time_ns()}").touch()
    time.sleep(recipe["seconds"])
    return np.arange(3.0)


def ask(_):
    return cache.once("slow", slow, {"seconds": 1}, np.zeros(3)).tolist()


@pytest.mark.processes
def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(ask, range(2)) == [[0.0, 1.0, 2.0]] * 2
    assert len([*tmp_path.glob("called-*")]) == 1


def other(recipe):
    return train(recipe)


def test_a_place_is_told_by_name_recipe_and_code():
    found = [
        cache.place(name, recipe, code)
        for name in ("a", "b")
        for recipe in ({"seed": 0}, {"seed": 1})
        for code in (train, other)
    ]
    assert len(set(found)) == 8
    assert all(path.parent == cache.cache_folder() and not path.exists() for path in found)
    assert cache.place("a", {"x": 1, "y": 2}, train) == cache.place("a", {"y": 2, "x": 1}, train)
    with pytest.raises(ValueError, match="letters, digits"):
        cache.place("a/b", {}, train)
    with pytest.raises(ValueError, match="recipe must hold"):
        cache.place("a", {"net": network()}, train)

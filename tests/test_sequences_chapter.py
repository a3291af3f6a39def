"""The chapter on sequences: a run that is killed and started again, and what its runs hang on."""

from pathlib import Path

import jax
import numpy as np
import pytest

CHAPTER = Path(__file__).parents[1] / "notebooks" / "paths" / "sequences.py"


@pytest.fixture(scope="module")
def chapter():
    """What the chapter defines before its search."""
    source, marker, _ = CHAPTER.read_text().partition("# ## The search")
    assert marker
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WMLIB_PRESET", "quick")
        names = {"__name__": "sequences_chapter"}
        with jax.numpy_dtype_promotion("standard"):
            exec(compile(source, str(CHAPTER), "exec"), names)
    return names


def config_of(chapter, method):
    return chapter["tiny"] | dict(per=2, searched=0, loss="own", method=method, setting=[0.1, 1.0])


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("method", ["FIP", "DER++"])
def test_a_sequence_that_is_killed_and_started_again_gives_the_same_numbers(chapter, method, tmp_path):
    config, follow = config_of(chapter, method), chapter["follow"]
    tests = [part.image for part in chapter["tasks_of"](config, 0).test]
    whole = chapter["Watch"](config, tests)
    end = follow(config, 0, whole)

    seen = []

    def killed(weights):
        seen.append(weights)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(config, 0, killed, tmp_path)
    assert len([*tmp_path.iterdir()]) == 2
    again = chapter["Watch"](config, tests)
    resumed = follow(config, 0, again, tmp_path)
    assert len(again.rows) == 3
    np.testing.assert_array_equal(np.array(whole.rows), np.array(again.rows))
    pairs = zip(jax.tree.leaves(end), jax.tree.leaves(resumed), strict=True)
    assert all(np.array_equal(x, y) for x, y in pairs)
    assert not all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(seen[0]), jax.tree.leaves(end), strict=True))


def test_a_search_has_classes_that_open_no_order(chapter):
    order = chapter["order"]
    for opening in (15, 30):
        opened = {int(c) for seed in range(3) for c in order(100, seed, 0)[:opening]}
        assert not opened & set(order(100, 0, opening)[:opening].tolist())
    assert len({tuple(order(100, seed, 0)) for seed in range(3)}) == 3

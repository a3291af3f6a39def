"""What several chapters define under one name, and record runs with, is the same code in each."""

import ast
import itertools
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SHAPES = [f"manifolds/{name}" for name in ("topology", "spheres", "curvature")]
OF_A_PAGE = {"searched"}  # tables of one page, that no run reaches


def definitions(chapter):
    """The functions and classes of a chapter, without their docstrings."""
    found = {}
    for node in ast.parse((NOTEBOOKS / f"{chapter}.py").read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in OF_A_PAGE:
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:]
            found[node.name] = ast.unparse(node)
    return found


@pytest.mark.parametrize("pair", list(itertools.combinations(SHAPES, 2)), ids=" and ".join)
def test_chapters_on_shapes_share_their_code(pair):
    a, b = map(definitions, pair)
    assert {"network", "train", "inverse_metric", "Told"} <= a.keys() & b.keys()
    assert {name: a[name] for name in a.keys() & b.keys()} == {name: b[name] for name in a.keys() & b.keys()}

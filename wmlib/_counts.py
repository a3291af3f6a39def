"""Whether a number can count something."""

import operator
from typing import Any

import numpy as np


class NoCountError(TypeError, ValueError):
    """A number of a type that counts nothing: a wrong type, and a wrong value to those who only look for that."""


def check_count(name: str, number: Any, least: int = 1, most: int | None = None) -> int:
    """The number as an `int`, if it is a whole number of an integer type between the bounds.

    **Raises:** `NoCountError`, a `TypeError` and a `ValueError`, for a number of another type (a boolean too);
    `ValueError` out of bounds.
    """
    try:
        if isinstance(number, (bool, np.bool_)):
            raise TypeError
        count = operator.index(number)
    except TypeError:
        raise NoCountError(
            f"{name} must be an integer, got {number!r} of type {type(number).__name__}; use int(...)"
        ) from None
    if count < least or (most is not None and count > most):
        bound = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {bound}, got {count}")
    return count

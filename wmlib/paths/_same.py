"""Digests by which a computation that is begun again finds what it has already done."""

import dataclasses
import dis
import enum
import hashlib
import pickle
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_LIBRARIES += (str(Path(__file__).resolve().parents[1]),)
_PLAIN = (bool, int, float, complex, str, bytes, types.NoneType, types.EllipsisType, enum.Enum)


def digest(before: bytes, *parts: Any) -> bytes:
    """Of what came before, and of any values.

    Arrays and settings count by their values. A function counts by its code, its defaults, and the variables of the
    functions around it and of its module which it uses; one of a library by its name and the variables around it. A
    class counts by its name and its functions; an object by its class and what it holds. Values that are equal may have
    other digests, where an object shows no more of itself than its bytes as `pickle` writes them, or its words.

    Functions that stand alone among the parts make something when they are called, and may note that they were: of
    their variables, lists, mappings, sets and objects with attributes count by their type.
    """
    alone = [_Digests(notes=True).of(part) if isinstance(part, types.FunctionType) else part for part in parts]
    return _Digests().of((before, alone))


def program(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function computes of arguments like these, with the constants of all programs in it; and the function."""
    jaxpr, *_ = eqx.filter_make_jaxpr(function)(*arguments)
    return [re.sub(r"0x[0-9a-f]+", "", str(jaxpr.jaxpr)), *_constants(jaxpr)]


def _constants(program: Any) -> list[Any]:
    """The constants of a program and of those within it."""
    found = [*getattr(program, "consts", ())]
    for equation in getattr(program, "jaxpr", program).eqns:
        inner = jax.tree.leaves([*equation.params.values()], is_leaf=lambda x: hasattr(x, "eqns"))
        for part in inner:
            if hasattr(part, "eqns"):
                found += _constants(part)
    return found


class _Digests:
    """Digests of values that may refer to one another."""

    def __init__(self, notes: bool = False):
        self.notes = notes
        self.known: dict[int, tuple[Any, bytes]] = {}  # objects are kept, so that no other gets their place

    def of(self, x: Any) -> bytes:
        if isinstance(x, (jax.Array, np.ndarray, np.generic)):
            if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return _sum("key", str(jax.random.key_impl(x)), self.of(jax.random.key_data(x)))
            held = np.asarray(x)
            if held.dtype.hasobject:
                return _sum("objects", str(held.shape), *map(self.of, held.flat))
            return _sum("array", f"{held.dtype}{held.shape}", held.tobytes())
        if isinstance(x, _PLAIN):
            return _sum("plain", type(x).__qualname__, repr(x))
        if id(x) in self.known:
            return self.known[id(x)][1]
        self.known[id(x)] = x, b"itself"
        self.known[id(x)] = x, (found := self._object(x))
        return found

    def _object(self, x: Any) -> bytes:
        if isinstance(x, types.ModuleType):
            return _sum("module", x.__name__, b"" if _of_library(x) else _text(x))
        if isinstance(x, type):
            own = {} if _of_library(x) else {k: code for k, v in vars(x).items() if (code := _code(v)) is not None}
            return _sum("class", x.__module__ or "", x.__qualname__, self.of(own))
        if isinstance(x, types.MethodType):
            return _sum("method", self.of(x.__func__), self.of(x.__self__))
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.CodeType):
            names = (x.co_names, x.co_varnames, x.co_freevars, x.co_cellvars)
            return _sum("code", x.co_code, repr(names), self.of(x.co_consts))
        if isinstance(x, Mapping):
            return _sum("mapping", *(y for k, v in x.items() for y in (self.of(k), self.of(v))))
        if isinstance(x, (list, tuple)):
            return _sum(type(x).__qualname__, *map(self.of, x))
        if isinstance(x, (set, frozenset)):
            return _sum("set", *sorted(map(self.of, x)))
        if isinstance(x, (property, classmethod, staticmethod)):
            return _sum("attribute", self.of([getattr(x, k, None) for k in ("fget", "fset", "__func__")]))
        if (inner := getattr(x, "__wrapped__", None)) is not None:
            rules = [getattr(x, name, None) for name in ("jvp", "fwd", "bwd")]
            return _sum("wrapped", self.of(inner), self.of([rule for rule in rules if callable(rule)]))
        if dataclasses.is_dataclass(x):
            held = {field.name: getattr(x, field.name, None) for field in dataclasses.fields(x)}
            return _sum("dataclass", self.of(type(x)), self.of(held))
        if hasattr(x, "func") and hasattr(x, "keywords"):  # functools.partial
            return _sum("partial", self.of([x.func, x.args, x.keywords]))
        if hasattr(x, "__dict__") and not _of_library(type(x)):
            return _sum("object", self.of(type(x)), self.of(vars(x)))
        if hasattr(x, "__qualname__"):  # a function of C
            return _sum("built-in", f"{x.__module__}.{x.__qualname__}")
        try:
            return _sum("pickled", pickle.dumps(x, protocol=4))
        except Exception:  # whatever it raises
            return _sum("said", type(x).__qualname__, re.sub(r"0x[0-9a-f]+", "", repr(x)))

    def _function(self, x: types.FunctionType) -> bytes:
        around = []
        for cell in x.__closure__ or ():
            try:
                around.append(self._variable(cell.cell_contents))
            except ValueError:  # still empty
                around.append(None)
        parts = [_sum("function", x.__module__ or "", x.__qualname__)]
        parts += map(self.of, (around, x.__defaults__, x.__kwdefaults__))
        if not _of_library(x):
            names = [name for name in sorted(_globals(x.__code__)) if name in x.__globals__]
            used = {name: self._variable(x.__globals__[name]) for name in names}
            parts += self.of(x.__code__), self.of(used)
        return _sum("function", *parts)

    def _variable(self, x: Any) -> Any:
        seen = isinstance(x, (jax.Array, np.ndarray, types.ModuleType)) or dataclasses.is_dataclass(x) or callable(x)
        keeps = isinstance(x, (list, Mapping, set)) or (hasattr(x, "__dict__") and not seen)
        return type(x).__qualname__ if self.notes and keeps else x


def _sum(*parts: str | bytes) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        found.update(f"{len(raw)}:".encode() + raw)
    return found.digest()


def _code(x: Any) -> Any:
    """What a class has of code: its functions, also as Equinox wraps them; None for anything else."""
    x = getattr(x, "method", x)
    return x if isinstance(x, (types.FunctionType, property, classmethod, staticmethod)) else None


def _globals(code: types.CodeType) -> set[str]:
    """The names that code, and code within it, looks up in its module."""
    found = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _globals(constant)
    return found


def _file(x: Any) -> str:
    if isinstance(x, types.FunctionType):
        return x.__code__.co_filename
    module = x if isinstance(x, types.ModuleType) else sys.modules.get(getattr(x, "__module__", None) or "")
    return getattr(module, "__file__", None) or ("" if module is None or module.__name__ == "__main__" else "built-in")


def _of_library(x: Any) -> bool:
    """Whether a function, a class or a module is installed, and not what somebody writes."""
    file = _file(x)
    return file == "built-in" or file.startswith(("<frozen", *_LIBRARIES))


def _text(module: types.ModuleType) -> bytes:
    try:
        return Path(_file(module)).read_bytes()
    except OSError:
        return b""

"""Digests by which a computation that is begun again finds what it has already done."""

import dataclasses
import dis
import enum
import functools
import hashlib
import os
import pickle
import re
import sys
import sysconfig
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

_STANDARD = tuple(str(Path(sysconfig.get_paths()[name])) + os.sep for name in ("stdlib", "platstdlib"))
_PLAIN = (bool, int, float, complex, str, bytes, types.NoneType, types.EllipsisType, enum.Enum)
# What Python and Equinox note of a class, and what says nothing of what it computes.
_NOTED = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__abstractmethods__", "_abc_impl"}
_NOTED |= {"__dataclass_fields__", "__dataclass_params__", "__match_args__", "__parameters__", "__orig_bases__"}
_NOTED |= {"__static_attributes__", "__firstlineno__", "__signature__"}
_WRITTEN = {f"__{name}__" for name in ("init", "new", "repr", "eq", "hash", "lt", "le", "gt", "ge", "replace")}
_WRITTEN |= {"__setattr__", "__delattr__", "__getnewargs__"}


def digest(before: bytes, *parts: Any) -> bytes:
    """Of what came before, and of any values.

    Arrays and settings count by their values. A function counts by its code, its defaults, and the variables of the
    functions around it and of its module which it uses; a module by its text and those of the modules it uses; a class by its
    name, its bases and what it holds; an object by its class and what it holds. Of what is installed, names count, and the
    variables around functions. Equal values may have other digests, where an object shows no more of itself than its bytes as
    `pickle` writes them, or its words; a generator is told by its code alone, and what is nested too deeply like nothing
    else.

    Functions that stand alone among the parts make something when they are called, and may note that they were: of
    their variables, lists, mappings, sets and objects with attributes count by their type.
    """
    try:
        alone = [_Digests(notes=True).of(part) if isinstance(part, types.FunctionType) else part for part in parts]
        return _Digests().of((before, alone))
    except RecursionError:
        return os.urandom(32)


def program(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function computes of arguments like these, with the constants of all programs in it."""
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
        kind = b"" if _installed(type(x)) else self.of(type(x))
        if isinstance(x, types.ModuleType):
            return _sum("module", x.__name__, *(() if _installed(x) else self._texts(x)))
        if isinstance(x, type):
            return _sum("class", str(x.__module__), x.__qualname__, *(() if _installed(x) else self._class(x)))
        if isinstance(x, types.MethodType):
            return _sum("method", self.of(x.__func__), self.of(x.__self__))
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.CodeType):
            sizes = (x.co_flags, x.co_argcount, x.co_posonlyargcount, x.co_kwonlyargcount)
            names = (x.co_names, x.co_varnames, x.co_freevars, x.co_cellvars)
            return _sum("code", x.co_code, x.co_exceptiontable, repr((sizes, names)), self.of(x.co_consts))
        if isinstance(x, Mapping):
            entries = [_sum("entry", self.of(k), self.of(v)) for k, v in x.items()]
            return _sum("mapping", kind, *(entries if isinstance(x, OrderedDict) else sorted(entries)))
        if isinstance(x, (list, tuple)):
            return _sum(type(x).__qualname__, kind, *map(self.of, x))
        if isinstance(x, (set, frozenset)):
            return _sum("set", kind, *sorted(map(self.of, x)))
        if isinstance(x, property | classmethod | staticmethod | functools.cached_property):
            parts = ("fget", "fset", "fdel", "__func__", "func")
            return _sum("attribute", *[self.of(getattr(x, name, None)) for name in parts])
        if dataclasses.is_dataclass(x):
            held = {field.name: getattr(x, field.name, None) for field in dataclasses.fields(x)}
            return _sum("dataclass", self.of(type(x)), self.of(held))
        if (inner := getattr(x, "__wrapped__", None)) is not None:
            rules = [getattr(x, name, None) for name in ("jvp", "fwd", "bwd")]
            own = {k: v for k, v in getattr(x, "__dict__", {}).items() if k not in ("__wrapped__", "__doc__")}
            return _sum(
                "wrapped", kind, self.of(inner), self.of([rule for rule in rules if callable(rule)]), self.of(own)
            )
        if isinstance(x, functools.partial):
            return _sum("partial", kind, self.of([x.func, x.args, x.keywords]))
        if isinstance(x, types.SimpleNamespace) or (hasattr(x, "__dict__") and not _installed(type(x))):
            return _sum("object", self.of(type(x)), self.of(vars(x)))
        if hasattr(x, "__qualname__"):  # a function of C, perhaps of an object; a generator
            owner = getattr(x, "__self__", None)
            code = getattr(x, "gi_code", None)
            owner = None if isinstance(owner, types.ModuleType) else owner
            return _sum("built-in", f"{getattr(x, '__module__', '')}.{x.__qualname__}", self.of((owner, code)))
        try:
            return _sum("pickled", kind, pickle.dumps(x, protocol=4))
        except Exception:  # whatever it raises
            return _sum("said", kind, type(x).__qualname__, re.sub(r"0x[0-9a-f]+", "", repr(x)))

    def _function(self, x: types.FunctionType) -> bytes:
        around = []
        for cell in x.__closure__ or ():
            try:
                around.append(self._variable(cell.cell_contents))
            except ValueError:  # still empty
                around.append(None)
        own = {k: v for k, v in x.__dict__.items() if k != "__wrapped__"} if not _installed(x) else {}
        parts = [_sum("function", str(x.__module__), x.__qualname__)]
        parts += map(self.of, (around, x.__defaults__, x.__kwdefaults__, own))
        if not _installed(x):
            read, imported = _looked_up(x.__code__)
            used = {name: self._variable(x.__globals__[name]) for name in sorted(read & x.__globals__.keys())}
            used |= {name: sys.modules[name] for name in imported & sys.modules.keys()}
            parts += self.of(x.__code__), self.of(used)
        return _sum("function", *parts)

    def _class(self, x: type) -> list[bytes]:
        """Of a class that somebody writes: its bases, and its functions, as Equinox wraps them too, and attributes."""
        held = {name: getattr(value, "method", value) for name, value in vars(x).items()}
        # Of what is called __so__, what a dataclass or a named tuple has written for itself says nothing new.
        files = {k: getattr(getattr(v, "__code__", None), "co_filename", None) for k, v in held.items()}
        noted = {k for k in held if (k in _NOTED and not files[k]) or (k in _WRITTEN and files[k] == "<string>")}
        own = {k: v for k, v in held.items() if k not in noted}
        return [self.of(x.__bases__), self.of({k: v for k, v in own.items() if not k.startswith("_abc")})]

    def _texts(self, x: types.ModuleType) -> list[bytes]:
        """Of a module that somebody writes: its text, and the modules that it holds, or has something of."""
        within = {name: module for name, module in sys.modules.items() if name.startswith(f"{x.__name__}.")}
        for value in vars(x).values():
            name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if isinstance(name, str) and name in sys.modules and name != "__main__":
                within[name] = sys.modules[name]
        others = {name: module for name, module in within.items() if module is not None and not _installed(module)}
        try:
            text = Path(x.__file__ or "").read_bytes()
        except (OSError, AttributeError):
            text = b""
        return [text, self.of(others)]

    def _variable(self, x: Any) -> Any:
        if not self.notes or isinstance(x, (jax.Array, np.ndarray, types.ModuleType, types.FunctionType, type)):
            return x
        told = dataclasses.is_dataclass(x) or hasattr(x, "__wrapped__") or isinstance(x, functools.partial)
        keeps = isinstance(x, (list, Mapping, set)) or (hasattr(x, "__dict__") and not told)
        return type(x) if keeps else x


def _sum(*parts: str | bytes) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        found.update(f"{len(raw)}:".encode() + raw)
    return found.digest()


def _looked_up(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The names that code, and code within it, looks up in its module; and the modules that it imports."""
    steps = [*dis.get_instructions(code)]
    read = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    imported = {step.argval for step in steps if step.opname == "IMPORT_NAME"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            more, others = _looked_up(constant)
            read, imported = read | more, imported | others
    return read, imported


def _installed(x: Any) -> bool:
    """Whether a function, a class or a module is one of a package or of Python, and not what somebody writes."""
    name = x.__name__ if isinstance(x, types.ModuleType) else getattr(x, "__module__", None) or ""
    if name.split(".")[0] in ("wmlib", "builtins"):
        return True
    if isinstance(x, types.FunctionType):
        file = x.__code__.co_filename
    else:
        module = x if isinstance(x, types.ModuleType) else sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if file is None:  # a script's module has none in a notebook; others are built in, or folders
            return module is not None and name != "__main__" and not hasattr(module, "__path__")
    return file.startswith(("<frozen", *_STANDARD)) or bool({"site-packages", "dist-packages"} & {*Path(file).parts})

"""A digest of the code that an experiment runs, so that a recorded row can say what it was computed by."""

import ast
import builtins
import contextlib
import copy
import dataclasses
import functools
import hashlib
import inspect
import linecache
import re
import symtable
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .presets import Preset

# Modules, and functions, that only find what has been computed already.
_FINDS = {"wmlib.lab.fingerprints.", "wmlib.lab.cache.", "wmlib.paths._same."}
_FINDS |= {f"wmlib.paths.sequences.{name}" for name in ("_digest", "_program", "_updates", "_write", "_read")}

_CONSTANTS = (bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset)
_CONSTANTS += (np.ndarray, np.generic, jax.Array, functools.partial)


def fingerprint(function: Callable) -> str:
    """A digest of the code that a function reaches: itself, and what it names in its own module and in wmlib.

    Docstrings, comments, annotations of arguments, error messages and layout do not count, nor does what refuses an
    argument: `if … : raise ValueError(…)` (or `TypeError`) outside `try`, `assert`, and calls of `check…` and `refuse…`
    whose value is not used. A run that was recorded has passed them all; in what is called where `ValueError` or
    `TypeError` are caught, they count. Constants count by their value, also those it
    finds in an enclosing function, in a container or in a field of a dataclass. What another library keeps while it runs
    (`sys.modules`) does not.

    **Raises:** `ValueError` if there is no source to read, as for a function typed at a prompt.
    """
    text = "\n".join(f"{place}: {body}" for place, body in sorted(_parts(function)[0].items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unplaced(function: Callable) -> list[tuple[str, str]]:
    """What `fingerprint` digests, with no word of the modules of wmlib in which definitions lie.

    Two versions of a function with the same list compute the same: definitions may have moved to other modules, and
    imports have followed them, but no definition and no constant has changed.

    **Returns:** the name and the code of each definition and constant, sorted.

    **Raises:** as `fingerprint`.
    """
    return sorted(_parts(function)[1])


def _parts(function: Callable) -> tuple[dict[tuple[str, str], str], list[tuple[str, str]]]:
    """The code that a function reaches, by module and name; and the same by name alone, without modules.

    A module that registers rules is one definition, for they act without being named: once one of its classes is reached,
    since rules act on instances. Its functions alone are definitions like any other.
    """
    whole: set[str] = set()
    caught: set[tuple[str, str]] = set()
    while True:
        parts, bare, registering, catching = _reached(function, whole, caught)
        if registering <= whole and catching <= caught:
            return parts, bare
        whole |= registering
        caught |= catching


def _reached(
    function: Callable, whole: set[str], caught: set[tuple[str, str]]
) -> tuple[dict[tuple[str, str], str], list[tuple[str, str]], set[str], set[tuple[str, str]]]:
    """The same, where some modules count as a whole, and some definitions with what they refuse; and those that register
    rules for classes which are reached, and those that are called where refusals are caught."""
    registering: set[str] = set()
    catching: set[tuple[str, str]] = set()
    function = inspect.unwrap(function)
    home = getattr(function, "func", function).__module__
    parts: dict[tuple[str, str], str] = {}
    bare: list[tuple[str, str]] = []
    alike: dict[tuple[str, str], list[Any]] = {}
    queue: list[Any] = []

    def spell(value: Any, placed: bool = True) -> str:
        """A value as text that is the same in every process; `placed`, with the modules of what it names."""
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            if not isinstance(value, (set, frozenset)) and ast.literal_eval(repr(value)) == value:
                return repr(value)
        if isinstance(value, functools.partial):
            value = (value.func, value.args, value.keywords)
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{k!r}: {spell(v, placed)}' for k, v in value.items())}}}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(spell(v, placed) for v in value)}]"
        if isinstance(value, (set, frozenset)):
            return f"{{{', '.join(sorted(spell(v, placed) for v in value))}}}"
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                value = jax.random.key_data(value)
            return f"{value.dtype}{value.shape} {hashlib.sha256(np.asarray(value).tobytes()).hexdigest()}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
            return f"{spell(type(value), placed)}({spell(fields, placed)})"
        definition = value if isinstance(value, type) else _unwrap(value)
        if not isinstance(definition, (types.FunctionType, type)):
            return repr(value) if isinstance(value, float) else type(value).__qualname__
        # How work that is done is found again decides nothing of what is computed.
        if f"{definition.__module__}." in _FINDS or f"{definition.__module__}.{definition.__qualname__}" in _FINDS:
            return definition.__qualname__
        if definition.__module__ == home or definition.__module__.startswith("wmlib."):
            module = _registering_module(definition)
            if module is not None and (isinstance(definition, type) or module.__name__ in whole):
                registering.add(module.__name__)
                queue.append(module)
            else:
                queue.append(definition)
        nameless = definition.__module__ == home or (not placed and _ours(definition.__module__))
        return f"{'' if nameless else definition.__module__}.{definition.__qualname__}"

    if isinstance(function, types.FunctionType):
        spell(function)
    else:
        parts["", ""] = spell(function)
        bare.append(("", spell(function, placed=False)))
    if not queue:
        raise ValueError(f"the code of {function!r} cannot be followed; give a function that def makes")
    while queue:
        definition = queue.pop()
        if isinstance(definition, types.ModuleType):
            module, name = definition, ""
        else:
            module, name = sys.modules[definition.__module__], definition.__qualname__
        # Lambdas in one place, and functions that one function has made, share a name.
        others = alike.setdefault((module.__name__, name), [])
        if any(other is definition for other in others):
            continue
        others.append(definition)
        more = f" {len(others)}" if len(others) > 1 else ""
        place = ("" if module.__name__ == home else module.__name__, f"{name}{more}")
        asked = ("", "") in caught or (module.__name__, name) in caught
        asked = asked or (not name and any(where == module.__name__ for where, _ in caught))
        try:
            whole_tree = ast.parse(_source(definition))
        except SyntaxError as error:  # a part of a statement, such as a lambda on the line of `try:`
            raise ValueError(
                f"the code of {definition!r} cannot be followed; give a function that def makes"
            ) from error
        heard = [*(ast.walk(whole_tree) if asked else _where_refusals_are_caught(whole_tree))]
        tree = _Essence(asked).visit(whole_tree)
        parts[place] = _text(tree)
        scope, among = {**vars(module), **_enclosing(definition)}, _free_names(parts[place])
        found: dict[str, tuple[str, str]] = {}
        for node in heard:
            value = _resolve(node, scope) if _root(node) in among else None
            if isinstance(value, (types.FunctionType, type)):
                catching.add((value.__module__, value.__qualname__))
            # What a chapter calls there by another way than its name may be anything.
            if isinstance(node, ast.Call) and module.__name__ == home and not asked:
                known = _root(node.func) in among and _resolve(node.func, {**vars(builtins), **scope}) is not None
                catching |= set() if known else {("", "")}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Name, ast.Attribute)) and _root(node) in among:
                value = _resolve(node, scope)
                if isinstance(value, (types.FunctionType, type)):
                    spell(value)
                elif _is_state(value, node, scope) or _tells_its_place(node):
                    continue
                elif isinstance(value, _CONSTANTS) or (
                    dataclasses.is_dataclass(value) and not isinstance(value, Preset)
                ):
                    text = ast.unparse(node)
                    parts[(place[0], f"{text}{more}")] = spell(value)
                    found[text] = (_Unplaced(scope, among).name(node), spell(value, placed=False))
        bare += [(name, _text(_Unplaced(scope, among).visit(tree))), *found.values()]
    return parts, bare, registering, catching


def _where_refusals_are_caught(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes within `try` whose handlers take `ValueError` or `TypeError` for something else, and within
    `with suppress(…)`."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Try, ast.TryStar)):
            handlers = [handler for handler in node.handlers if not _raises_again(handler)]
            taken = [part for handler in handlers for part in ast.walk(handler.type or ast.Name("Exception"))]
        elif isinstance(node, ast.With):
            taken = [part for item in node.items for part in ast.walk(item.context_expr)]
        else:
            continue
        if {_last(part) for part in taken} & {*_REFUSALS, "Exception", "BaseException"}:
            for statement in node.body:
                yield from ast.walk(statement)


def _raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether a handler passes a refusal on, as it is or in other words."""
    last = handler.body[-1]
    error = last.exc.func if isinstance(last, ast.Raise) and isinstance(last.exc, ast.Call) else None
    return isinstance(last, ast.Raise) and (last.exc is None or (isinstance(error, ast.Name) and error.id in _REFUSALS))


def _last(node: ast.AST) -> str:
    """The last of some names joined by dots."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _source(definition: Any) -> str:
    """The text of a definition, a class with its decorators.

    `inspect` would take a class from the line that Python 3.13 notes, which is another where something decorates it on
    import, and a function that came from a string from the file of the module whose name that string was given.
    """
    try:
        if isinstance(definition, type) and (found := _class_in(sys.modules[definition.__module__], definition)):
            return found
        file = getattr(getattr(definition, "__code__", None), "co_filename", "")
        if file == "<string>":
            raise OSError("it came from a string")
        return textwrap.dedent(inspect.getsource(definition))
    except (OSError, TypeError) as error:
        # A class made in a notebook: Python finds the cell of a function, but not that of a class.
        for entry in reversed([*linecache.cache.values()]):
            if isinstance(definition, type) and len(entry) == 4 and entry[1] is None:
                with contextlib.suppress(SyntaxError):
                    for node in ast.parse("".join(entry[2])).body:
                        if isinstance(node, ast.ClassDef) and node.name == definition.__qualname__:
                            return ast.unparse(node)
        raise ValueError(
            f"the code of {definition.__qualname__} cannot be read; define it in a file or a notebook"
        ) from error


@functools.cache
def _classes(text: str) -> dict[str, ast.ClassDef]:
    """The classes in the text of a module, by their qualified names."""
    found: dict[str, ast.ClassDef] = {}

    def look(node: ast.AST, within: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = within
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                name = f"{within}{child.name}"
                if isinstance(child, ast.ClassDef):
                    found[name] = child
                name += "." if isinstance(child, ast.ClassDef) else ".<locals>."
            look(child, name)

    look(ast.parse(text), "")
    return found


def _class_in(module: types.ModuleType, definition: type) -> str | None:
    """The text of a class in the file of its module, if it has one."""
    with contextlib.suppress(OSError, TypeError):
        if node := _classes(inspect.getsource(module)).get(definition.__qualname__):
            return ast.unparse(node)
    return None


def _free_names(text: str) -> set[str]:
    """The names that code takes from outside itself: a variable of its own may be called like a constant."""
    names, tables = set(), [symtable.symtable(text, "code", "exec")]
    for table in tables:
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        tables += table.get_children()
    return names


def _enclosing(definition: Any) -> dict[str, Any]:
    """The variables that a function finds in the functions around it."""
    found = {}
    for name, cell in zip(
        getattr(getattr(definition, "__code__", None), "co_freevars", ()),
        getattr(definition, "__closure__", None) or (),
        strict=True,
    ):
        with contextlib.suppress(ValueError):  # a cell that is still empty
            found[name] = cell.cell_contents
    return found


class _Essence(ast.NodeTransformer):
    """What a definition computes: without docstrings, annotations of arguments, error messages and refusals."""

    def __init__(self, caught: bool = False):
        self.caught = int(caught)  # how many statements are around that may catch what is raised

    def generic_visit(self, node: ast.AST) -> ast.AST:
        # What refuses within `try` decides what is done next.
        catches = isinstance(node, (ast.Try, ast.TryStar, ast.With))
        self.caught += catches
        super().generic_visit(node)
        self.caught -= catches
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.Raise):
            node.exc = node.cause = None
        body = getattr(node, "body", None)
        if isinstance(body, list) and not body and not isinstance(node, ast.Module):
            body.append(ast.Pass())
        return node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if not self.caught and _refuses(node) else self._unless_emptied(node, node.test)

    def visit_For(self, node: ast.For) -> ast.AST | None:
        return self._unless_emptied(node, node.iter)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        call = node.value
        name = _last(call.func) if isinstance(call, ast.Call) else ""
        ours = isinstance(call, ast.Call) and (
            isinstance(call.func, ast.Name) or _root(call.func) in ("self", "wm", "wmlib")
        )
        checks = ours and re.match("_?(check|refuse)(_|$)", name) is not None
        return None if checks and not self.caught and not _acts(call) else self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST | None:
        return self.generic_visit(node) if self.caught or _acts(node) else None

    def _unless_emptied(self, node: ast.If | ast.For, head: ast.expr) -> ast.AST | None:
        """Nothing where all that a statement held were refusals."""
        idle, acts = _idle(node.body), _acts(head)
        self.generic_visit(node)
        return node if idle or acts or node.orelse or not _idle(node.body) else None


_CHANGES = {"add", "append", "clear", "discard", "extend", "insert", "next", "pop", "popitem", "remove", "send"}
_CHANGES |= {"setdefault", "update", "write"}


def _acts(node: ast.AST) -> bool:
    """Whether code does more than look: it binds a name, or calls what changes something."""
    return any(
        isinstance(part, (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom))
        or (isinstance(part, ast.Call) and _last(part.func) in _CHANGES)
        for part in ast.walk(node)
    )


def _idle(body: list[ast.stmt]) -> bool:
    return all(isinstance(statement, ast.Pass) for statement in body)


def _refuses(node: ast.stmt) -> bool:
    """Whether a statement does nothing but raise `ValueError` or `TypeError`, or let pass."""
    if not isinstance(node, ast.If) or _acts(node):
        return False
    *before, last = node.body
    error = last.exc.func if isinstance(last, ast.Raise) and isinstance(last.exc, ast.Call) else None
    raises = isinstance(error, ast.Name) and error.id in _REFUSALS
    words = all(
        (isinstance(line, ast.Assign) and all(isinstance(target, (ast.Name, ast.Tuple)) for target in line.targets))
        or _refuses(line)
        for line in before
    )
    return raises and words and all(map(_refuses, node.orelse))


_REFUSALS = ("ValueError", "TypeError")


class _Unplaced(ast.NodeTransformer):
    """A definition without the modules of wmlib: a name is what it stands for, wherever that lies."""

    def __init__(self, scope: Mapping[str, Any], among: set[str]):
        self.scope, self.among = scope, among

    def name(self, node: ast.expr) -> str:
        value = _resolve(node, self.scope)
        if isinstance(value, (types.FunctionType, type)) and _ours(value.__module__):
            return value.__qualname__
        if isinstance(node, ast.Attribute) and _is_ours(_resolve(node.value, self.scope)):
            return node.attr
        return ast.unparse(node)

    def _rename(self, node: ast.Name | ast.Attribute) -> ast.AST:
        if _root(node) in self.among and (name := self.name(node)) != ast.unparse(node):
            return ast.Name(name, node.ctx)
        return self.generic_visit(node)

    visit_Name = visit_Attribute = _rename

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.level or _ours(node.module or "") else node


class _EarlyQuotes(ast.NodeTransformer):
    """f-strings as Python 3.11 writes them, whose own quotes differ from those within; later versions need not."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        quotes, whole = ["'", '"', '"""', "'''"], ""
        for part in node.values:
            inner = self._within(part) if isinstance(part, ast.FormattedValue) else part
            text = ast.unparse(ast.JoinedStr([inner]))[1:]
            length = 3 if text[:3] in quotes else 1
            text = text[length:-length]
            whole, left = whole + text, [quote for quote in quotes if quote not in text]
            # Where none is left, Python 3.11 could not have had the string.
            quotes = sorted(left, key=lambda quote: quote[0] == text[-1:]) or quotes
        return ast.Name(f"f{quotes[0]}{whole}{quotes[0]}", ast.Load())

    def _within(self, part: ast.FormattedValue) -> ast.FormattedValue:
        spec = part.format_spec
        if isinstance(spec, ast.JoinedStr):
            values = [self._within(x) if isinstance(x, ast.FormattedValue) else x for x in spec.values]
            spec = ast.JoinedStr(values)
        return ast.FormattedValue(self.visit(part.value), part.conversion, spec)


def _text(tree: ast.AST) -> str:
    """A definition as text that is the same in every version of Python."""
    if sys.version_info >= (3, 12):
        tree = _EarlyQuotes().visit(copy.deepcopy(tree))
    return ast.unparse(tree)


def _ours(module: str) -> bool:
    return module.split(".")[0] == "wmlib"


def _is_ours(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and _ours(value.__name__)


def _root(node: ast.AST) -> str | None:
    """The first of some names joined by dots."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _resolve(node: ast.AST, scope: Mapping[str, Any]) -> Any:
    """The value of a name, of names in modules joined by dots, or of a preset's setting; None for anything else."""
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, scope)
        value = getattr(owner, node.attr, None) if isinstance(owner, (types.ModuleType, Preset)) else None
    else:
        value = scope.get(node.id) if isinstance(node, ast.Name) else None
    return _unwrap(value)


def _is_state(value: Any, node: ast.expr, scope: Mapping[str, Any]) -> bool:
    """Whether a value is what another library keeps while it runs, as `sys.modules`: a container in a module not ours."""
    if not isinstance(value, (list, dict, set)) or not isinstance(node, ast.Attribute):
        return False
    owner = _resolve(node.value, scope)
    return isinstance(owner, types.ModuleType) and not _ours(owner.__name__)


def _tells_its_place(node: ast.expr) -> bool:
    """Whether a name is what Python tells a module of itself, as `__file__`: that hangs on where the project lies."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.startswith("__") and name.endswith("__")


def _unwrap(value: Any) -> Any:
    return inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value


def _registering_module(value: Any) -> types.ModuleType | None:
    module = sys.modules[value.__module__]
    return module if value.__module__.startswith("wmlib.") and hasattr(module, "_") else None

"""What this book asks of Sphinx beyond its published extensions.

1. The cache of executed cells is kept in a folder named by a digest of everything the
   outputs depend on, so that a changed library never shows a stale figure.
2. References to other projects' documentation resolve without a network: their names
   and addresses are listed in `book/inventories.toml`.
3. Every chapter can be downloaded as a notebook and as a script.
4. A built page that would fetch anything from another host fails the build.
5. Docstrings are written in the Markdown that editors show; they are turned into what
   autodoc reads, and a name in backticks becomes a link wherever there is a page for it.
6. ``{wm-versions}`` writes the table of the software that the page was built with.
7. ``{wm-costs}`` writes how long the recorded runs of every chapter took.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import platform
import re
import shutil
import sys
import textwrap
import tomllib
import zlib
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any

import jupytext
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode
from sphinx_proof.nodes import proof_node

# --------------------------------------------------------------------------------------
# 1. Executed cells


def digest(root: Path) -> str:
    """A short digest of the library, the lock, the recorded runs and the claims under `root`, and the preset."""
    sums = hashlib.sha256(f"{sys.version} {os.environ.get('WMLIB_PRESET')}".encode())
    for pattern in ("wmlib/**/*.py", "requirements.txt", "book/results/**/*", "book/claims/**/*.toml"):
        for path in sorted(root.glob(pattern)):
            if path.is_file():
                sums.update(str(path.relative_to(root)).encode() + b"\0")
                sums.update(path.read_bytes() + b"\0")
    return sums.hexdigest()[:16]


def choose_cache(app: Sphinx, config: Any) -> None:
    build = Path(app.outdir).parent
    cache = build / f"executed-{digest(Path(app.srcdir))}"
    for stale in build.glob("executed-*"):
        if stale != cache:
            shutil.rmtree(stale, ignore_errors=True)
    config.nb_execution_cache_path = str(cache)


# --------------------------------------------------------------------------------------
# 2. Names of other projects, and short names of our own


# The short names under which modules are imported.
_ALIASES = {"eqx": "equinox", "np": "numpy", "jnp": "jax.numpy", "lx": "lineax", "pd": "pandas"}
# The modules from which names are imported one by one.
_IMPORTED_FROM = ("jaxtyping.", "collections.abc.", "concurrent.futures.", "matplotlib.axes.", "pathlib.")
# Where every name of inventories.toml is documented.
_elsewhere: dict[str, str] = {}


def write_inventories(app: Sphinx, config: Any) -> None:
    """Turn `book/inventories.toml` into the binary files intersphinx reads."""
    folder = Path(app.outdir).parent / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    projects = tomllib.loads(Path(app.srcdir, "book/inventories.toml").read_text())
    mapping = {}
    for project, entry in projects.items():
        lines = []
        for pages in entry["pages"]:
            for name in pages["names"]:
                full = f"{pages['prefix']}{name}" if "prefix" in pages else name
                uri = pages["uri"].replace("{name}", full)
                lines.append(f"{full} py:{pages['role']} 1 {uri} -")
                _elsewhere[full] = entry["url"] + uri
        header = (
            "# Sphinx inventory version 2\n"
            f"# Project: {project}\n# Version: \n"
            "# The remainder of this file is compressed using zlib.\n"
        )
        path = folder / f"{project}.inv"
        body = zlib.compress("\n".join([*sorted(lines), ""]).encode())
        path.write_bytes(header.encode() + body)
        mapping[project] = (entry["url"], str(path))
    config.intersphinx_mapping = mapping


def resolve_name(app: Sphinx, env: Any, node: addnodes.pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Resolve the names that people write to the names that are documented.

    `wm.modulate` and `wmlib.modulate` are what `wmlib.manifolds.modulation` defines, `eqx.Module` is
    `equinox.Module`, and `Float` in a signature is jaxtyping's.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    package, dot, rest = target.partition(".")
    full = _ALIASES.get(package, package) + dot + rest
    for prefix in ("", *_IMPORTED_FROM):
        if (name := prefix + full) in _elsewhere:
            return nodes.reference("", "", content, internal=False, refuri=_elsewhere[name], reftitle=name)
    if package not in ("wm", "wmlib"):
        # In a docstring, the bare name of something that the package exports.
        rest = target
    if not rest:
        return None
    found: Any = importlib.import_module("wmlib")
    try:
        for part in rest.split("."):
            found = getattr(found, part)
    except AttributeError:
        return None
    # What is defined in wmlib.models.cnn may be documented as wmlib.models.CNN.
    module, name = getattr(found, "__module__", ""), getattr(found, "__qualname__", "")
    while module:
        entry = env.get_domain("py").objects.get(f"{module}.{name}")
        if entry is not None and f"{module}.{name}" != target:
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, target)
        module = module.rpartition(".")[0]
    return None


# --------------------------------------------------------------------------------------
# 3. Downloads


def offer_downloads(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: Any) -> None:
    """Add the two links under a chapter's title, and the notebook to the page's menu."""
    if app.builder.format != "html" or doctree is None:
        return
    source = Path(app.env.doc2path(pagename))
    if source.suffix != ".py":
        return
    context["ipynb_source"] = f"{pagename}.ipynb"
    folder = Path(app.outdir) / "_sources"
    target = folder / f"{pagename}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata.setdefault("kernelspec", {"name": "python3", "display_name": "Python 3", "language": "python"})
    jupytext.write(notebook, target, fmt="ipynb")
    base = context["pathto"]("_sources", 1)
    links = (
        '<p class="chapter-downloads">Run this chapter: '
        f'<a href="{base}/{pagename}.ipynb" download>notebook (.ipynb)</a> · '
        f'<a href="{base}/{pagename}.py" download>script (.py)</a></p>'
    )
    context["body"] = context["body"].replace("</h1>", "</h1>\n" + links, 1)


# --------------------------------------------------------------------------------------
# 4. Nothing from elsewhere

_FOREIGN = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
# Attributes whose address a browser fetches by itself. An ordinary link (<a href>) is not among them.
_FETCHED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
_FETCHED_BY_STYLE = re.compile(r"(?:@import|url\()\s*(?:url\()?\s*[\"']?((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)
_FETCHED_BY_SCRIPT = re.compile(r"\b(?:import|from|fetch)\s*\(?\s*[\"']((?:https?:)?//[^\"']+)")


class _Fetches(HTMLParser):
    """Collects in `found` every address on another host that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.inside = tag if tag in ("script", "style") else ""
        self.found += _FETCHED_BY_STYLE.findall(values.get("style", ""))
        if tag == "link" and not {"canonical", "license", "author"}.isdisjoint(values.get("rel", "").split()):
            return
        for name in _FETCHED.get(tag, ()):
            for address in values.get(name, "").split(","):
                if _FOREIGN.match(address):
                    self.found.append(address.strip())

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            pattern = _FETCHED_BY_STYLE if self.inside == "style" else _FETCHED_BY_SCRIPT
            self.found += pattern.findall(data)


def foreign_references(folder: Path) -> list[str]:
    """Every address on another host that a page under `folder` would fetch by itself."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".html", ".css", ".svg"}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".css":
            fetched = _FETCHED_BY_STYLE.findall(text)
        else:
            parser = _Fetches()
            parser.feed(text)
            fetched = parser.found
        found += [f"{path.relative_to(folder)}: {address}" for address in fetched]
    return found


def refuse_foreign_references(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    if found := foreign_references(Path(app.outdir)):
        raise ExtensionError(
            "the book must read without a network, but these would be fetched from "
            "another host:\n  " + "\n  ".join(found[:20])
        )


def fold_proofs(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Fold a proof of class `dropdown` in a <details>.

    A proof has no title, so the script that folds admonitions would stop at it, and with it
    every fold of the page. It also gives each proof of a page the same id.
    """
    for proof in list(doctree.findall(proof_node)):
        box = proof[0]
        box["ids"] = []
        if app.builder.format != "html" or "dropdown" not in box["classes"]:
            continue
        box["classes"].remove("dropdown")
        first = next(iter(box.findall(nodes.Text)), None)
        if first is not None and first.startswith("Proof. "):
            first.parent.replace(first, nodes.Text(first[len("Proof. ") :]))
        opening = '<details class="proof-fold"><summary>Proof</summary>'
        proof.replace_self([nodes.raw("", opening, format="html"), proof, nodes.raw("", "</details>", format="html")])


# The parts of MathJax that _config.yml asks for.
_MATHJAX = (
    "startup.js",
    "core.js",
    "loader.js",
    "input/tex.js",
    "input/tex/extensions",
    "output/chtml.js",
    "output/chtml/fonts",
    "a11y/assistive-mml.js",
)


def choose_mathjax(app: Sphinx, config: Any) -> None:
    config.mathjax_path = "mathjax/startup.js"


def prune_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Keep the few files in use of the 24 MB that sphinx-mathjax-offline copies."""
    folder = Path(app.outdir, "_static", "mathjax")
    for path in folder.rglob("*") if exception is None else ():
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(name == kept or name.startswith(f"{kept}/") for kept in _MATHJAX):
            path.unlink()


# --------------------------------------------------------------------------------------
# 5. Docstrings

_NAME = re.compile(r"[A-Za-z_][\w]*(\.[A-Za-z_]\w*)*")


def markdown_to_rst(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Fenced or indented code, `$formulas$`, and lists that follow a paragraph directly."""
    rst: list[str] = []
    fence = None
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        text = line.strip()
        if text.startswith("```"):
            if fence is None:
                fence = indent
                rst += ["", f"{indent}.. code-block:: {text[3:].strip() or 'python'}", ""]
            else:
                fence = None
                rst.append("")
            continue
        if fence is not None:
            rst.append(f"   {line}" if text else "")
            continue
        if line.startswith("    ") and len(rst) > 1 and not rst[-1].strip():
            above = next((earlier for earlier in reversed(rst) if earlier.strip()), "")
            if above and not above.startswith(" ") and not re.match(r"[-*] ", above):
                rst += [".. code-block:: python", ""]
        line = re.sub(r"(?<![\\$`])\$([^$`\n]+)\$(?!\$)", r":math:`\1`", line)
        if re.match(r"[-*] ", text) and rst and rst[-1].strip():
            previous = rst[-1].strip()
            inside = len(rst[-1]) - len(rst[-1].lstrip()) > len(indent)
            if not (inside or re.match(r"[-*] ", previous)):
                rst.append("")
        rst.append(line)
    lines[:] = [line for line in rst if not line.startswith("Create new instance of ")]


def skip_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a named tuple are described in its docstring."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def name_role(role, rawtext, text, lineno, inliner, options=None, content=None):
    """The role of plain backticks: code, and a link if the name has a page."""
    code = nodes.literal(text, text, classes=["code"])
    name = re.sub(r"\(.*\)$", "", text)
    if not _NAME.fullmatch(name):
        return [code], []
    env = inliner.document.settings.env
    node = addnodes.pending_xref(
        "",
        code,
        refdoc=env.docname,
        refdomain="py",
        reftype="obj",
        reftarget=name,
        refexplicit=True,
        wm_optional=True,
        **{"py:module": env.ref_context.get("py:module"), "py:class": env.ref_context.get("py:class")},
    )
    return [node], []


def leave_unlinked(app: Sphinx, env: Any, node: addnodes.pending_xref, content: nodes.Element):
    """A name in plain backticks or in a signature that has no page stays as it is.

    A reference that someone wrote as a reference still has to resolve.
    """
    by_hand = "refwarn" in node
    optional = node.get("wm_optional") or (node.get("refdomain") == "py" and not by_hand)
    return content if optional else None


def _fields(obj: type) -> str:
    """The signature of a class without a constructor of its own, from its fields."""
    try:
        fields = [f for f in dataclasses.fields(obj) if f.init]
    except TypeError:
        named = getattr(obj, "_fields", None)  # a named tuple
        return f"({', '.join(named)})" if named else "()"
    return f"({', '.join(f.name if f.default is dataclasses.MISSING else f'{f.name}={f.default!r}' for f in fields)})"


def signature_as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Take a signature from the source: evaluated jaxtyping annotations are unreadable."""
    own = obj
    if what == "class":
        own = vars(obj).get("__init__")
        if own is None or not own.__code__.co_filename.endswith(f"{obj.__module__.rpartition('.')[2]}.py"):
            return _fields(obj), ""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(own))))
    except (OSError, TypeError, SyntaxError):
        return None
    function = tree.body[0]
    if not isinstance(function, ast.FunctionDef):
        return None
    arguments = function.args
    if what in ("method", "class") and not any(
        isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list
    ):
        (arguments.posonlyargs or arguments.args)[:1] = []
    return f"({ast.unparse(arguments)})", ast.unparse(function.returns) if function.returns else ""


# --------------------------------------------------------------------------------------
# 6. The environment

_PACKAGES = (
    "jax",
    "equinox",
    "quax",
    "optax",
    "lineax",
    "jaxtyping",
    "numpy",
    "scipy",
    "sympy",
    "pandas",
    "pyarrow",
    "datasets",
    "matplotlib",
    "torch",
    "transformers",
    "jupyter-book",
    "jupytext",
)


class Versions(SphinxDirective):
    """``{wm-versions}``: a table of Python, the machine and the packages that matter."""

    def run(self) -> list[nodes.Node]:
        rows = [
            ("Python", platform.python_version()),
            ("System", f"{platform.system()} {platform.machine()}"),
        ]
        for package in _PACKAGES:
            try:
                rows.append((package, metadata.version(package)))
            except metadata.PackageNotFoundError:
                rows.append((package, "not installed"))
        # The page says what it was built with, so it is rebuilt every time.
        self.env.note_reread()
        return [plain_table([("Software", "Version"), *rows])]


def plain_table(rows: list[tuple[str, ...]]) -> nodes.table:
    """A table of words, the first row its head."""
    table = nodes.table(classes=["colwidths-auto"])
    group = nodes.tgroup(cols=len(rows[0]))
    table += group
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    parts = head, body = nodes.thead(), nodes.tbody()
    group += parts
    for number, cells in enumerate(rows):
        row = nodes.row()
        row += [nodes.entry("", nodes.paragraph(text=cell)) for cell in cells]
        (body if number else head).append(row)
    return table


def plain_times(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Of myst-nb's table of execution times keep the chapter, by its title, and the seconds."""
    for table in doctree.findall(nodes.table):
        head = next(iter(table.findall(nodes.thead)), None)
        cells = [entry.astext() for entry in head[0]] if head is not None else []
        if "Run Time (s)" not in cells:
            continue
        kept = (0, cells.index("Run Time (s)"))
        group = table[0]
        for index, column in reversed(list(enumerate(group.findall(nodes.colspec)))):
            if index not in kept:
                group.remove(column)
        group["cols"] = len(kept)
        numbers = app.env.toc_secnumbers
        body = next(iter(table.findall(nodes.tbody)))
        body.children.sort(key=lambda row: numbers.get(row[0].astext(), {}).get("", ()))
        for row in table.findall(nodes.row):
            row.children = [row[index] for index in kept]
            for link in row.findall(nodes.reference):
                title = app.env.titles.get(link.astext())
                if title is not None:
                    link.children = [nodes.inline("", title.astext())]
        for entry, text in zip(head[0], ("Chapter", "Seconds"), strict=True):
            entry.children = []
            entry += nodes.paragraph("", text)


# --------------------------------------------------------------------------------------
# 7. What the recorded runs cost


def costs(root: Path, preset: str) -> list[tuple[str, str, int, float, float]]:
    """The chapters that have recorded runs at a preset: name, title, how many, their seconds, those of the longest.

    An experiment is counted with a chapter that asks for its runs (`asked.json`): of several, with the one that it is
    called after. Of several rows of one run the last counts; one that was computed together with others has its share of
    their time.
    """
    from wmlib.lab.runs import recorded_runs

    chapters, folder = re.findall(r"notebooks/(\S+)", (root / "_toc.yml").read_text()), root / "book/results"
    texts = {chapter: (root / "notebooks" / f"{chapter}.py").read_text() for chapter in chapters}
    asked = json.loads((folder / "asked.json").read_text()).get(preset, {})

    def home(experiment):
        asking = [c for c in chapters if experiment in asked.get(c, ())]
        called = [c for c in asking if re.fullmatch(rf"{c.rpartition('/')[2]}(_\w+)?", experiment)]
        return next(iter(called or asking), None)

    homes, found = {path.stem: home(path.stem) for path in sorted(folder.glob("*.jsonl"))}, []
    for chapter in chapters:
        names = [name for name, at in homes.items() if at == chapter]
        seconds = [s for name in names for s in recorded_runs(name, preset, results=folder)["seconds"]]
        title = re.search(r"^# # (.+)$", texts[chapter], re.MULTILINE)
        if seconds:
            found.append((chapter, title[1] if title else chapter, len(seconds), sum(seconds), max(seconds)))
    return found


class Costs(SphinxDirective):
    """``{wm-costs}``: a table of the time that the recorded runs of every chapter took."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the runs may have changed while the page has not
        rows = [("Chapter", "Runs", "Hours", "Longest run, minutes")]
        for _, title, count, total, longest in costs(Path(self.env.srcdir), "cpu"):
            rows.append((title, str(count), f"{total / 3600:.1f}", f"{longest / 60:.1f}"))
        return [plain_table(rows)]


def setup(app: Sphinx) -> dict[str, Any]:
    # Before intersphinx and myst-nb read what is set here.
    app.connect("config-inited", choose_cache, priority=100)
    app.connect("config-inited", write_inventories, priority=100)
    app.connect("missing-reference", resolve_name)
    app.connect("missing-reference", leave_unlinked, priority=900)
    app.connect("autodoc-process-docstring", markdown_to_rst)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-signature", signature_as_written)
    app.add_role("name", name_role)
    app.config.default_role = "name"
    # Before the theme fills its menu of downloads.
    app.connect("html-page-context", offer_downloads, priority=100)
    app.connect("doctree-resolved", fold_proofs)
    app.connect("doctree-resolved", plain_times)
    app.connect("config-inited", choose_mathjax, priority=100)
    app.connect("build-finished", prune_mathjax, priority=900)
    app.connect("build-finished", refuse_foreign_references, priority=999)
    app.add_directive("wm-versions", Versions)
    app.add_directive("wm-costs", Costs)
    # Jupyter Book sets this for an extension that is not loaded here.
    app.add_config_value("comments_config", {}, "")
    return {"parallel_read_safe": True, "parallel_write_safe": True}

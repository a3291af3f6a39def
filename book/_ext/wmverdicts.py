"""The verdicts on the claims of every chapter, wherever the book shows them.

1. ``{wm-verdicts}`` writes all claims with their verdicts, judged from the recorded runs when the page is built.
2. ``{wm-verdict-overview}`` draws one square for each claim, in the colour of its verdict, with the count of each.
3. ``{wm-finding} the metric helps`` says in a sentence what came of the claims with that topic.
4. The role ``{claim}`` says the verdict on one claim; where the runs say another, the build fails.
"""

from __future__ import annotations

import functools
import html
import os
import posixpath
import re
from collections import Counter
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_VERDICTS = ("reproduced", "partly", "mixed", "contradicted", "undecided", "not tested")


def claimed_chapters(root: Path) -> list[str]:
    """The chapters that have claims, in the order of the table of contents; one that is not in it is left out."""
    contents = (root / "_toc.yml").read_text()
    folder = root / "book/claims"
    chapters = [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.toml"))]

    def place(chapter: str) -> int:
        found = re.search(rf"notebooks/{re.escape(chapter)}\s*$", contents, re.MULTILINE)
        return found.start() if found else -1

    return sorted((chapter for chapter in chapters if place(chapter) >= 0), key=place)


@functools.cache
def judgements(chapter: str) -> list[Any]:
    """The claims of a chapter judged from the recorded runs, in their order."""
    from wmlib.lab.verdicts import judge_chapter

    return judge_chapter(chapter, os.environ.get("WMLIB_PRESET", "cpu"))


def chapter_title(root: Path, chapter: str) -> str:
    """The title of a chapter's page."""
    text = Path(root, "notebooks", f"{chapter}.py").read_text()
    title = re.search(r"^# # (.+)$", text, re.MULTILINE)
    return title[1] if title else chapter


def claim_id(chapter: str, number: int) -> str:
    """The anchor of a claim on the page of verdicts."""
    return nodes.make_id(f"claim-{chapter}-{number}")


def _address(page: str, chapter: str, number: int) -> str:
    """The address of a claim on the page of verdicts, from another page."""
    return f"{posixpath.relpath('book/verdicts.html', posixpath.dirname(page) or '.')}#{claim_id(chapter, number)}"


class Verdicts(SphinxDirective):
    """``{wm-verdicts}``: the claims of every chapter with their verdicts; with an argument, those of one chapter."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        from wmlib.lab.verdicts import verdict_table

        # The runs may have changed while the page has not, so it is written every time.
        self.env.note_reread()
        chapters = self.arguments or claimed_chapters(Path(self.env.srcdir))
        preset = os.environ.get("WMLIB_PRESET", "cpu")
        tables = {chapter: verdict_table(chapter, preset) for chapter in chapters}
        if self.arguments:
            return self._table(tables[chapters[0]], nodes.container())
        count = [self._parse(f"At the preset `{preset}`:\n\n{self._count(list(tables.values()))}", nodes.container())]
        return count + [node for chapter, table in tables.items() for node in self._section(chapter, table)]

    def _section(self, chapter: str, table: Any) -> list[nodes.Node]:
        document = f"notebooks/{chapter}"
        name = chapter_title(Path(self.env.srcdir), chapter)
        section = nodes.section(ids=[f"verdicts-{nodes.make_id(chapter)}"], names=[nodes.fully_normalize_name(name)])
        section += nodes.title(name, name)
        if document in self.env.found_docs:
            self._parse(f"{{doc}}`To the chapter </{document}>`", section)
        section += self._table(table, nodes.container())
        for body in section.findall(nodes.tbody):
            for number, row in enumerate(body.findall(nodes.row), 1):
                row[0].insert(0, nodes.target("", "", ids=[claim_id(chapter, number)]))
        return [section]

    def _table(self, table: Any, into: nodes.Element) -> list[nodes.Node]:
        table = table.map(lambda text: text.replace("|", "\\|")).assign(verdict="**" + table.verdict + "**")
        self._parse(table.to_markdown(index=False, disable_numparse=True), into)
        for node in into.findall(nodes.table):
            node["classes"].append("verdicts")
        return into.children

    def _count(self, tables: list[Any]) -> str:
        """How many claims came to which verdict, by when they were written, as a table."""
        words = [
            verdict.partition(";")[0].replace("holds", "reproduced") for table in tables for verdict in table.verdict
        ]
        written = [when for table in tables for when in table.written]
        kinds = {
            "before their rows": lambda when: "before" in when,
            "of these, tests (the margins too)": lambda when: when.endswith("a test"),
            "after their rows": lambda when: "after" in when,
            "in all": lambda when: True,
        }
        lines = [f"| claims written | {' | '.join(_VERDICTS)} | sum |", "| --- |" + " ---: |" * (len(_VERDICTS) + 1)]
        for kind, counts in kinds.items():
            count = Counter(word for word, when in zip(words, written, strict=True) if counts(when))
            cells = [str(count[word]) for word in _VERDICTS]
            lines.append(f"| {kind} | {' | '.join(cells)} | {count.total()} |")
        return "\n".join(lines)

    def _parse(self, text: str, into: nodes.Element) -> nodes.Element:
        self.state.nested_parse(StringList(text.splitlines(), self.get_source_info()[0]), 0, into)
        return into


class Overview(SphinxDirective):
    """``{wm-verdict-overview}``: a square for each claim, chapter by chapter; a filled one is a test of what it says.

    Each is a link to the claim, and names its verdict to those who do not see the colour.
    """

    def run(self) -> list[nodes.Node]:
        from wmlib.lab.figures import VERDICT_COLOURS

        self.env.note_reread()
        root, lines, count = Path(self.env.srcdir), [], Counter()
        for chapter in claimed_chapters(root):
            squares = []
            for number, judgement in enumerate(judgements(chapter), 1):
                count[judgement.value.replace("holds", "reproduced")] += 1
                said = html.escape(f"{judgement.claim.text}: {judgement.value}", quote=True)
                kind = "before" if judgement.claim.written == "before" else "after"
                squares.append(
                    f'<a class="claim {kind}" style="--verdict: {VERDICT_COLOURS[judgement.value]}" title="{said}" '
                    f'aria-label="{said}" href="{_address(self.env.docname, chapter, number)}"></a>'
                )
            page = posixpath.relpath(f"notebooks/{chapter}.html", posixpath.dirname(self.env.docname) or ".")
            title = html.escape(chapter_title(root, chapter))
            lines.append(f'<dt><a href="{page}">{title}</a></dt><dd>{"".join(squares)}</dd>')
        legend = "".join(
            f'<li><span class="claim" style="--verdict: {VERDICT_COLOURS[verdict]}"></span>{verdict} {count[verdict]}</li>'
            for verdict in _VERDICTS
            if count[verdict]
        )
        text = f'<div class="verdict-overview"><ul>{legend}</ul><dl>{"".join(lines)}</dl></div>'
        return [nodes.raw("", text, format="html")]


class Finding(SphinxDirective):
    """``{wm-finding} topic``: what came of the claims with that `topic`, in a sentence with its numbers."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        paragraph = nodes.paragraph(classes=["finding"])
        self.state.nested_parse(
            StringList([finding(Path(self.env.srcdir), self.arguments[0])], self.get_source_info()[0]), 0, paragraph
        )
        return paragraph.children


_COUNTED = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _words(number: int) -> str:
    return _COUNTED[number] if number < len(_COUNTED) else str(number)


def finding(root: Path, topic: str) -> str:
    """What the runs say of the claims with a topic, in all chapters.

    **Raises:** `ValueError` if no claim has it.
    """
    found = [(c, j) for c in claimed_chapters(root) for j in judgements(c) if j.claim.topic == topic]
    if not found:
        raise ValueError(f"no claim in book/claims has the topic {topic!r}")
    states = Counter(o.state for _, j in found for o in j.comparisons)
    values = Counter(j.value for _, j in found)
    means = [o.mean for _, j in found for o in j.comparisons]
    below, of = sum(mean < 0 for mean in means), len(means)
    places = list(dict.fromkeys(c for c, _ in found))
    chapters = ", ".join(f"{{doc}}`/notebooks/{c}`" for c in places)
    shown = values["holds"] + values["reproduced"]
    return (
        f"**That {topic} is {'found in part' if shown else 'not what we find'}.** "
        f"It was tried in {_words(len(places))} chapter{'s' * (len(places) > 1)} ({chapters}), in {_words(of)} comparisons:"
        f" better in {_words(states['shown'])}, worse in {_words(states['contradicted'])}, undecided in"
        f" {_words(states['undecided'])}. The mean difference is below zero in {'all' if below == of else _words(below)} of them."
        f" Claims that say so: {', '.join(f'{_words(n)} {value}' for value, n in values.items())}."
    )


_SAID = re.compile(r"(?:(?P<chapter>[\w/]+) )?(?P<number>\d+) (?P<verdict>[a-z ]+)")


@functools.cache
def judged(chapter: str) -> list[str]:
    """The verdicts of a chapter's claims, in their order, from the recorded runs."""
    return [judgement.value for judgement in judgements(chapter)]


def wrongly_said(text: str, chapter: str) -> str:
    """What is wrong with the text of a role `claim` on the page of a chapter, or nothing."""
    if not (said := _SAID.fullmatch(text)):
        return f"{text!r} is not the number of a claim and its verdict, as in `4 contradicted`"
    verdicts = judged(said["chapter"] or chapter)
    if not 1 <= (number := int(said["number"])) <= len(verdicts):
        return f"{said['chapter'] or chapter} has {len(verdicts)} claims, and none of number {number}"
    if (verdict := verdicts[number - 1]) != said["verdict"]:
        return f"claim {number} of {said['chapter'] or chapter} is {verdict!r} and the page says {said['verdict']!r}"
    return ""


def claim_role(role, rawtext, text, lineno, inliner, options=None, content=None):
    """``{claim}`4 contradicted` ``: the verdict on a claim of this page, in words that hold, or the build fails.

    ``{claim}`paths/metric 4 contradicted` `` is a claim of another chapter.
    """
    page = inliner.document.settings.env.docname
    if wrong := wrongly_said(text, page.removeprefix("notebooks/")):
        return [nodes.literal(text, text)], [inliner.reporter.warning(f"{page}: {wrong}", line=lineno)]
    said = _SAID.fullmatch(text)
    assert said is not None
    chapter = said["chapter"] or page.removeprefix("notebooks/")
    address = _address(page, chapter, int(said["number"]))
    link = nodes.reference("", "", internal=True, refuri=address, reftitle=f"claim {said['number']} of {chapter}")
    link += nodes.emphasis("", said["verdict"], classes=["verdict"])
    return [link, nodes.Text(f" (claim {said['number']})")], []


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("claim", claim_role)
    app.add_directive("wm-verdicts", Verdicts)
    app.add_directive("wm-verdict-overview", Overview)
    app.add_directive("wm-finding", Finding)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

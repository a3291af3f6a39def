"""What the pages say of a claim is the verdict that its runs give it."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book/_ext"))

from wmverdicts import claimed_chapters, judged, wrongly_said  # noqa: E402

CHAPTERS = claimed_chapters(ROOT)
ROLE = re.compile(r"\{claim\}`([^`]*)`")
PAGES = [*sorted((ROOT / "notebooks").rglob("*.py")), *sorted((ROOT / "book").glob("*.md"))]


def roles(path):
    """The texts of the roles `claim` on a page, their lines joined."""
    text = re.sub(r"\n# ?", " ", path.read_text()) if path.suffix == ".py" else path.read_text()
    return [re.sub(r"\s+", " ", said) for said in ROLE.findall(text)]


@pytest.mark.parametrize("path", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_a_page_says_the_verdict_that_the_runs_give(path):
    chapter = path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("notebooks/")
    assert [wrong for said in roles(path) if (wrong := wrongly_said(said, chapter))] == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_says_something_of_each_of_its_claims(chapter):
    said = roles(ROOT / "notebooks" / f"{chapter}.py")
    numbers = {int(text.split()[0]) for text in said if text.split()[0].isdigit()}
    assert numbers == set(range(1, len(judged(chapter)) + 1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("contradicted", "is not the number of a claim"),
        ("0 contradicted", "none of number 0"),
        ("99 contradicted", "none of number 99"),
        ("{n} anything", "and the page says 'anything'"),
        ("paths/metric 99 holds", "paths/metric has"),
    ],
)
def test_a_wrong_word_is_found(text, says):
    assert says in wrongly_said(text.format(n=len(judged(CHAPTERS[0]))), CHAPTERS[0])


def test_the_right_word_passes():
    for chapter in CHAPTERS[:2]:
        for number, verdict in enumerate(judged(chapter), 1):
            assert wrongly_said(f"{number} {verdict}", chapter) == ""
            assert wrongly_said(f"{chapter} {number} {verdict}", "elsewhere") == ""

"""Plain English, as far as a program can check it: short sentences, lines that fit, no word that hides the meaning."""

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.meta, pytest.mark.house]
ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "mlx_parity/README.md", "mlx_parity/SKILL.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
WRITTEN_BY_A_COMMAND = {"docs/findings.md"}  # its sentences are those of the recorded findings
LONGEST_SENTENCE = 30  # words up to a stop, colon or semicolon; text in backticks counts as one
LONGEST_LINE = 130
# Patterns to avoid, and what to write instead.
BETTER = {
    r"gone on with|went on with": "say what resumes",
    r"nobody's business": "say what is kept, and why no more",
    r"what (?:it|they|this|that|he|she) (?:follows?|comes?) (?:from|of)": "name what determines it",
    r"\bsees? nothing but\b": "say what it processes",
    r"\bnot a law\b|\bis a draw\b": "say what may vary",
    r"\bwhere (?:a|the) result hangs on\b": "say what amplifies what",
    r"\bin order to\b": "to",
    r"\butili[sz]e|\bleverag(?:e|es|ing)\b": "use",
    r"\bplease note\b|\bit should be noted\b": "say it",
    r"\bsimply\b|\bobviously\b|\bof course\b|\bbasically\b|\bseamless": "leave it out",
    r"\bdue to the fact that\b": "because",
    r"\bprior to\b": "before",
    r"\bin the event (?:of|that)\b": "if",
    r"\bthe former\b|\bthe latter\b": "name it",
}


def without_code(page: str) -> str:
    """A page without fenced code and front matter."""
    return re.sub(r"^( *)```.*?^\1```$", "", re.sub(r"\A---\n.*?^---$", "", page, flags=re.M | re.S), flags=re.M | re.S)


def blocks(page: str) -> list[str]:
    """Paragraphs and items of a page's text, without code, tables and headings."""
    text = without_code(page)
    found: list[list[str]] = [[]]
    for line in re.sub(r"<!--.*?-->", "", text, flags=re.S).splitlines():
        if not line.strip() or line.startswith(("#", "|", "     ")) or re.match(r" *\|", line):
            found.append([])
        elif item := re.match(r" *(?:[-*]|\d+\.) +(.*)", line):
            found.append([item[1]])
        elif line.startswith("    ") and not found[-1]:
            continue  # indented code
        else:
            found[-1].append(line.strip())
    return [" ".join(lines) for lines in found if lines]


def sentences(block: str) -> list[str]:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "X", block))
    return re.split(r"(?<=[.!?:;])[*)]*\s+(?=\S)", plain)


def too_long(page: str) -> list[str]:
    return [s for block in blocks(page) for s in sentences(block) if len(s.split()) > LONGEST_SENTENCE]


def wide(page: str) -> list[str]:
    """Lines of prose that are wider than a screen; tables and code may be."""
    return [
        line for line in without_code(page).splitlines() if len(line) > LONGEST_LINE and not re.match(r" *\|", line)
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in WRITTEN_BY_A_COMMAND])
def test_a_sentence_can_be_read_in_one_breath(page):
    assert too_long((ROOT / page).read_text("utf-8")) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_line_fits_on_a_screen(page):
    assert wide((ROOT / page).read_text("utf-8").partition("<!-- results -->")[0]) == []


def test_long_sentences_and_lines_are_found():
    assert too_long("word " * 31 + ".") and not too_long("word " * 15 + "; " + "word " * 15 + ".")
    assert not too_long("```sh\n" + "word " * 40 + "\n```\n| " + "word " * 40 + " |")
    assert wide("x" * 131) and not wide("```\n" + "x" * 131 + "\n```\n| " + "x" * 131)


@pytest.mark.parametrize("pattern", BETTER)
def test_words_that_hide_what_is_meant_are_not_used(pattern):
    """In pages, docstrings, comments and messages: every tracked text but the data, this file, and the licence."""
    files = ("*.md", "*.py", "*.j2", "*.html", "*.yml", "*.toml", "Makefile")
    listed = ["git", "grep", "-nIiP", pattern, "--", *files, ":!tests/repository/test_prose.py", ":!parity_tests/data"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert not done.stdout, f"{BETTER[pattern]}:\n{done.stdout}"

"""docs/architecture.md against the code: paths, functions, and arrows that are imports."""

import ast
import re
from pathlib import Path

import pytest

from tests.repository.test_house import TOP_FLOOR

pytestmark = [pytest.mark.meta, pytest.mark.house]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
HOPS = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE)))
NOT_DRAWN = {"tests", "examples"}  # as the page says


class Drawing:
    """One mermaid block: `boxes` with the paths in their labels, `arrows` between them as (from, to, dotted)."""

    def __init__(self, text: str) -> None:
        labels = dict(re.findall(r'^ +(\w+)\["(.*)"\]$', text, re.M))
        self.boxes = {
            box: [p for p in label.split("<br>") if re.search(r"/|\.py$", p)] for box, label in labels.items()
        }
        lines = re.findall(r"^ +(\w+) (-->|-\.->) ([\w &]+)$", text, re.M)
        self.arrows = {(start, end, line == "-.->") for start, line, ends in lines for end in ends.split(" & ")}
        assert len(text.strip().splitlines()) == 1 + len(labels) + len(lines), "a line that is not understood"

    def box(self, file: str) -> str | None:
        """Where a file is drawn; `file` is relative to the checkout."""
        return next((box for box, paths in self.boxes.items() for p in paths if f"{file}/".startswith(p)), None)

    def imports(self) -> set[tuple[str, str, bool]]:
        """The arrows that the code makes, dotted where only commands import."""
        by: dict[tuple[str, str], set[str]] = {}
        for path in sorted(p for paths in self.boxes.values() for place in paths for p in files(ROOT / place)):
            file = path.relative_to(ROOT).as_posix()
            for other in imported(path):
                ends = self.box(file), self.box(other)
                if None not in ends and ends[0] != ends[1]:
                    by.setdefault(ends, set()).add(file)
        return {(*ends, importers <= TOP_FLOOR) for ends, importers in by.items()}


def files(place: Path) -> list[Path]:
    return [place] if place.is_file() else [p for p in place.rglob("*.py") if not p.name.startswith("test_")]


def imported(path: Path) -> set[str]:
    """Files of the checkout that one imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            inside = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = [*inside, *((node.module or "").split(".") if node.module else [])]
            names = [".".join([*module, a.name]) for a in node.names]
        for name in names:
            whole = Path(*name.split("."))
            places = [whole.with_suffix(".py"), whole / "__init__.py"]
            places += [whole.parent.with_suffix(".py"), whole.parent / "__init__.py"] if "." in name else []
            found |= {p.as_posix() for p in places if (ROOT / p).is_file()}
    return found


DRAWINGS = [Drawing(text) for text in re.findall(r"^```mermaid\n(.*?)^```$", PAGE, re.M | re.S)]


@pytest.mark.parametrize("drawing", DRAWINGS, ids=["folders", "port"])
def test_the_arrows_are_the_imports(drawing):
    assert drawing.arrows == drawing.imports()


def test_everything_is_drawn():
    folders, port = DRAWINGS
    top = {p.parent.name for p in ROOT.glob("*/__init__.py")} | {"examples"}
    assert {name for name in top if folders.box(name) is None} == NOT_DRAWN
    inside = {p for p in (ROOT / "port").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert [p.name for p in inside if port.box(p.relative_to(ROOT).as_posix()) is None] == ["__init__.py"]


def test_every_path_exists():
    drawn = {place for drawing in DRAWINGS for paths in drawing.boxes.values() for place in paths}
    named = {p for p in re.findall(r"`([\w/]+(?:\.\w+|/))`", PAGE) if "/" in p}
    assert len(drawn) > 15 and len(named) > 5
    assert [place for place in drawn | named if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("file, name", HOPS)
def test_every_hop_exists(file, name):
    body = ast.parse((ROOT / file).read_text("utf-8")).body
    for word in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == word]
        assert found, f"{file} has no {name}"
        body = getattr(found[0], "body", [])


def test_the_words_are_in_order_and_stand_once():
    words = re.findall(r"^\| ([\w ]+) \| ", PAGE.partition("## Words")[2], re.M)[1:]
    assert len(words) > 15 and words == sorted(set(words))

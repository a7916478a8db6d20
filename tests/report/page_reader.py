"""Reads a page back: text by element id, rows of tables, attributes, tags."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "circle", "rect"}
SHAPES = {"path", "circle", "rect"}


@dataclass
class Element:
    """One element, with its text and its parts."""

    tag: str
    attributes: dict[str, str]
    parts: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text inside, spaces drawn together."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> list[str]:
        found = []
        for part in self.parts:
            found += [part] if isinstance(part, str) else [*part._texts(), " "]
        return found

    def all(self, tag: str = "", kind: str = "") -> list[Element]:
        """Elements inside with this tag and this class."""
        found = []
        for part in self.parts:
            if isinstance(part, Element):
                classes = part.attributes.get("class", "").split()
                if tag in ("", part.tag) and (not kind or kind in classes):
                    found.append(part)
                found += part.all(tag, kind)
        return found

    def by_id(self, name: str) -> Element:
        """The one element of an id."""
        found = [e for e in self.all() if e.attributes.get("id") == name]
        assert len(found) == 1, f"{len(found)} elements have the id {name}"
        return found[0]

    def rows(self) -> list[list[str]]:
        """Texts of a table's body."""
        cells = [[c for c in row.parts if isinstance(c, Element)] for row in self.all("tr")]
        return [[c.text for c in row] for row in cells if row and row[-1].tag == "td"]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].parts.append(element)
        closed_at_once = tag in VOID - SHAPES
        if not closed_at_once:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].parts.append(element)

    def handle_endtag(self, tag: str) -> None:
        element = self.open.pop()
        assert element.tag == tag, f"<{element.tag}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def read_page(html: str) -> Element:
    """The page as a tree; every element must be closed where it was opened."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert [element.tag for element in reader.open] == ["document"], "an element is left open"
    return reader.open[0]

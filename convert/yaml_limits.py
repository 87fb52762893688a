"""Limits of a yaml file, checked while it is parsed and before any object is made."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from port.files.errors import Refused

# The official file has 500 events, six levels, and values of a line; PyYAML's work grows with the square of some.
MAX_EVENTS = 20_000
MAX_DEPTH = 32
MAX_SCALAR = 1024  # characters


@dataclass
class _Open:
    """An open list or mapping: its anchor, the number of events before it, and its greatest depth."""

    anchor: str | None
    before: int
    deepest: int


def check_events(text: str) -> None:
    """Refuse deep nesting, long values, and aliases that expand to more than a file could contain.

    Raises:
        Refused: a limit is exceeded; the message has the line.
        YAMLError: the file is not yaml.
    """
    within = [_Open(None, 0, 0)]
    anchors: dict[str, tuple[int, int]] = {}  # events and levels of the target of an alias
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark, size, depth = event.start_mark, 1, len(within)
        line = f"line {mark.line + 1 if mark else '?'}"
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise Refused(f"{line}: alias *{event.anchor} has no target, or contains itself")
            size, levels = anchors[event.anchor]
            depth += levels
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MAX_SCALAR:
                raise Refused(f"{line}: a value of {len(event.value)} characters, more than {MAX_SCALAR}")
            if event.anchor:
                anchors[event.anchor] = 1, 0
        elif isinstance(event, yaml.CollectionStartEvent):
            anchors.pop(event.anchor or "", None)
            within.append(_Open(event.anchor, total, depth))
        total += size
        within[-1].deepest = max(within[-1].deepest, depth)
        if isinstance(event, yaml.CollectionEndEvent):
            closed = within.pop()
            within[-1].deepest = max(within[-1].deepest, closed.deepest)
            if closed.anchor:
                anchors[closed.anchor] = total - closed.before, closed.deepest - len(within)
        if total > MAX_EVENTS:
            raise Refused(f"{line}: more than {MAX_EVENTS} values, counting those of aliases")
        if depth > MAX_DEPTH:
            raise Refused(f"{line}: nested more than {MAX_DEPTH} deep")

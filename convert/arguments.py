"""Constructor arguments of the original, read strictly."""

from __future__ import annotations

from typing import Any

from port.files.errors import Refused, brief


class Arguments:
    """Constructor arguments, taken one by one: whatever is left at the end is unknown.

    Args:
        where: their place, for messages.
        values: by name.
        complete: refuse a missing one, as a checkpoint's own files need: the original's default is often not the
            port's (a sampling rate of 22050 Hz, a rotary base of 10000).
    """

    def __init__(self, where: str, values: Any, complete: bool = False) -> None:
        if not isinstance(values, dict):
            raise Refused(f"{where}: expected named arguments, found {type(values).__name__}")
        self.where = where
        self.values = dict(values)
        self.complete = complete

    def take(self, *names: str) -> dict[str, Any]:
        """Arguments that configure the model; without `complete`, only those that are present."""
        if self.complete and (absent := [name for name in names if name not in self.values]):
            raise Refused(f"{self.where}.{min(absent)}: missing")
        return {name: self.values.pop(name) for name in names if name in self.values}

    def require(self, name: str) -> Any:
        if name not in self.values:
            raise Refused(f"{self.where}.{name}: missing")
        return self.values.pop(name)

    def expect(self, **known: Any) -> None:
        """Arguments for which the model supports a single value."""
        if self.complete and (absent := [name for name in known if name not in self.values]):
            raise Refused(f"{self.where}.{min(absent)}: missing")
        self.allow(**known)

    def allow(self, **known: Any) -> None:
        """Arguments with one supported value that may be missing: it is the original's default, or nothing reads it."""
        for name, wanted in known.items():
            value = self.values.pop(name, wanted)
            if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
                raise Refused(f"{self.where}.{name}: {brief(value)} is not supported; use {wanted!r}")

    def ignore(self, *names: str) -> None:
        """Arguments that only training reads."""
        for name in names:
            self.values.pop(name, None)

    def done(self) -> None:
        if self.values:
            raise Refused(f"{self.where}.{min(self.values, key=str)}: unknown argument")

"""Constructor arguments of the original, read strictly."""

from __future__ import annotations

from typing import Any

from port.config import ConfigError


class Arguments:
    """Constructor arguments taken one by one, so that whatever is left over is unknown."""

    def __init__(self, where: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: expected named arguments, found {type(values).__name__}")
        self.where = where
        self.values = dict(values)

    def take(self, *names: str) -> dict[str, Any]:
        """Arguments that configure the model, those that are there."""
        return {name: self.values.pop(name) for name in names if name in self.values}

    def require(self, name: str) -> Any:
        if name not in self.values:
            raise ConfigError(f"{self.where}.{name}: missing")
        return self.values.pop(name)

    def expect(self, **known: Any) -> None:
        """Arguments for which the model knows one value only."""
        for name, wanted in known.items():
            value = self.values.pop(name, wanted)
            if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
                raise ConfigError(
                    f"{self.where}.{name}: {value!r:.60} is not supported, the model knows {wanted!r} only"
                )

    def ignore(self, *names: str) -> None:
        """Arguments that only training reads."""
        for name in names:
            self.values.pop(name, None)

    def done(self) -> None:
        if self.values:
            raise ConfigError(f"{self.where}.{min(self.values, key=str)}: unknown argument")

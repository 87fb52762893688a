"""Adapters of the ports that can be judged, one module each; `load_adapter` loads one by name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from mlx_parity.adapter import Adapter, AdapterError, described


def load_adapter(name: str, dtype: str = "float32") -> Adapter:
    """The adapter in `parity_tests/adapters/NAME.py`, made by its function `make(dtype=...)`.

    Raises:
        AdapterError: the module or its function `make` is missing, a package is not installed, or `make` raises,
            for example because of a part that the suite does not know.
    """
    module = f"{__name__}.{name}"
    here = Path(__file__)
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or not here.with_name(f"{name}.py").exists():
        raise AdapterError(f"no adapter is named {name}; there are {', '.join(adapter_names())}")
    try:
        make = getattr(import_module(module), "make", None)
    except ImportError as error:
        pinned = here.with_name(f"{name}.requirements.txt").exists()
        hint = f"; python -m parity_tests.audit {name} installs it in an environment of its own" if pinned else ""
        raise AdapterError(f"adapter {name}: {error}{hint}") from None
    except Exception as error:
        raise AdapterError(f"adapter {name}: {described(error)}") from None
    if make is None:
        raise AdapterError(f"{module} has no function make(dtype)")
    try:
        return make(dtype=dtype)
    except Exception as error:
        raise AdapterError(f"adapter {name}: {described(error)}") from None


def adapter_names() -> list[str]:
    """Modules beside this one that define `make`."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if "\ndef make(" in file.read_text("utf-8")]

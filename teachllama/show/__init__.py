"""Pictures and widgets for notebooks. Importing this is cheap: matplotlib and ipywidgets load when a name is used.

Imports the engine's public names and is imported by none of them. Needs the `lab` extra. What is here: `dir(show)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "calculator": "KVCalculator Table kv_calculator kv_calculator_table",
    "kv_plot": "plot_kv",
    "memory_plot": "staircase",
    "notebook04": "CacheSnapshot cache_filling cache_snapshot kv_against_context next_tokens reserved_and_resident "
    "session_bars with_and_without_cache wrong_calculators",
    "shapes": "SHAPES Shape shape_of",
    "style": "Picture format_bytes visible",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"teachllama.show has no {name!r}; it has {', '.join(sorted(_MODULE))}")
    value = getattr(import_module(f"teachllama.show.{_MODULE[name]}"), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted(_MODULE)

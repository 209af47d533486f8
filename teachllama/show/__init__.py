"""Pictures and widgets for notebooks. Importing this is cheap: matplotlib and ipywidgets load when a name is used.

A lesson's pictures are defined in its folder in `teachllama.lessons`. Uses the engine's public names; importing the
engine does not import this. Needs the `lab` extra. `dir(show)` lists the names.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "lessons.n04_sessions.calculator": "KVCalculator Table kv_calculator kv_calculator_table",
    "show.kv_plot": "plot_kv",
    "show.memory_plot": "staircase",
    "lessons.n04_sessions.pictures": "CacheSnapshot cache_filling cache_snapshot kv_against_context next_tokens "
    "reserved_and_resident session_bars with_and_without_cache wrong_calculators",
    "lessons.n04_sessions.shapes": "SHAPES Shape shape_of",
    "lessons.common.style": "Picture format_bytes visible",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"teachllama.show has no {name!r}; it has {', '.join(sorted(_MODULE))}")
    value = getattr(import_module(f"teachllama.{_MODULE[name]}"), name)
    globals()[name] = value  # found directly the next time
    return value


def __dir__() -> list[str]:
    return sorted(_MODULE)

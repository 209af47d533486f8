"""Describes references between objects in words: "item 0 of a list, which is attribute `.x` of ..."."""

from __future__ import annotations

import gc
import inspect
import sys
import types
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

GENERATORS = {types.GeneratorType: "gi", types.CoroutineType: "cr", types.AsyncGeneratorType: "ag"}
CACHED_FUNCTION: type = type(lru_cache(len))


class Step(NamedTuple):
    """One reference on the path from the object to a root: the object is `phrase` of a `noun`."""

    phrase: str  # "item 2"
    noun: str  # "list"
    access: str = ""  # "[2]": the code that gets the object from the noun, if there is exactly one place
    kind: str = "attribute"
    release: str = ""  # ".close()": the call that makes the noun release it


def is_function(frame: types.FrameType) -> bool:
    """Whether a frame runs a function. If not, it runs a module or class body, and f_locals is a real dictionary."""
    return bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED)


def locals_of(frame: types.FrameType) -> dict[str, Any]:
    """A frame's variables. Before Python 3.13, also clears the copy in the frame that would keep them alive."""
    values = frame.f_locals
    copy = dict(values)
    # 3 references: the frame's, `values`, and getrefcount's argument. With more, some code has called locals(). A
    # traced frame's copy is written back after the trace function, so it must stay.
    if sys.version_info < (3, 13) and is_function(frame) and frame.f_trace is None and sys.getrefcount(values) <= 3:
        values.clear()
    return copy


def referents(x: Any) -> list[Any]:
    return list(x.flat) if isinstance(x, np.ndarray) and x.dtype.hasobject else gc.get_referents(x)


def dict_of(x: Any) -> Any:
    try:
        return object.__getattribute__(x, "__dict__")
    except AttributeError:
        return None


def names_of(x: Any, child: Any) -> list[str]:
    """The keys or attributes under which x holds the child. Runs no code of x, such as properties."""
    pairs = x if isinstance(x, dict) else dict_of(x)
    names = [str(key) for key, value in list(dict.items(pairs)) if value is child] if isinstance(pairs, dict) else []
    for cls in type(x).__mro__:
        for name, member in list(vars(cls).items()):
            if type(member) is types.MemberDescriptorType:  # __slots__, and fields of built-in types
                try:
                    names += [name] if member.__get__(x) is child else []
                except AttributeError:  # an empty slot
                    continue
    return names


def describe(chain: list[Any], errors: Mapping[int, str]) -> list[Step]:
    """Describes a chain of objects, each referred to by the next."""
    steps = []
    i = 0
    while i + 1 < len(chain):
        step, used = _step(chain[i], chain[i + 1], chain[i + 2 : i + 4])
        i += used
        if type(chain[i]) is types.FrameType:  # from the frame up its traceback to the error counts as one step
            while i + 1 < len(chain) and type(chain[i + 1]) in (types.FrameType, types.TracebackType):
                i += 1
            error = errors.get(id(chain[i]))
            if i + 1 < len(chain) and isinstance(chain[i + 1], BaseException):
                i += 1
                error = type(chain[i]).__name__
            if error:
                step = step._replace(noun=f"{step.noun}, in the traceback of {_a(error)} {error}")
        steps.append(step)
    return [step for step in steps if step.phrase]


def _step(child: Any, parent: Any, above: list[Any]) -> tuple[Step, int]:
    """Describes what the child is of the parent; also returns how many links of the chain that covers."""
    kind, up = type(parent), above[0] if above else None
    name = kind.__name__
    if kind in (dict, types.CellType) and type(up) in (types.FrameType, CACHED_FUNCTION, *GENERATORS):
        return _step(child, up, above[1:])[0], 2  # the frame's copy of its variables, or a shared variable
    if kind is types.CellType and len(above) == 2 and type(above[1]) is types.FunctionType:  # cell <- tuple <- function
        code = above[1].__code__
        names = [n for n, cell in zip(code.co_freevars, above[1].__closure__ or (), strict=False) if cell is parent]
        return Step(f"the variable {_ticks(names)} in the closure", f"function `{code.co_qualname}`", "", "closure"), 3
    if kind is dict and dict_of(up) is parent:
        return _attribute(up, names_of(parent, child)), 2
    if kind in (dict, tuple) and type(up) is types.FunctionType:
        return Step("a default argument", f"function `{up.__qualname__}`", "", "closure"), 2
    if kind is types.FrameType or kind in GENERATORS:
        frame = parent if kind is types.FrameType else getattr(parent, f"{GENERATORS[kind]}_frame")
        names = [n for n, value in locals_of(frame).items() if value is child] if frame is not None else []
        phrase = f"the local variable {_ticks(names)}" if names else "a value in use"
        if kind is types.FrameType:
            return Step(phrase, f"function `{frame.f_code.co_qualname}`", "", "traceback"), 1
        noun = "coroutine" if kind is types.CoroutineType else "generator"
        return Step(phrase, f"suspended {noun} `{parent.__qualname__}`", "", "generator", ".close()"), 1
    if kind is types.MethodType:
        return Step("the `self`", f"bound method `{parent.__func__.__qualname__}`"), 1
    if kind is CACHED_FUNCTION:
        noun = f"cached function `{parent.__wrapped__.__qualname__}`"
        return Step("a remembered call", noun, "", "item", ".cache_clear()"), 1
    if name in ("managedbuffer", "traceback", "_lru_list_elem"):  # implementation details
        return Step("", ""), 1
    if kind is memoryview:
        return Step("the memory", "memoryview", "", "view"), 1
    if issubclass(kind, np.ndarray):
        return Step("an element", "NumPy array", "", "item"), 1
    if issubclass(kind, dict):
        keys = [_key(key) for key, value in list(dict.items(parent)) if value is child]
        access = f"[{keys[0]}]" if len(keys) == 1 and keys[0][0] != "<" else ""
        phrase = f"the value at {_listed('key', keys)}" if keys else "a key"
        return Step(phrase, "dictionary" if kind is dict else name, access, "item"), 1
    if issubclass(kind, (list, tuple, deque)):
        at = [str(n) for n, x in enumerate(list(parent)) if x is child]
        return Step(_listed("item", at), name, f"[{at[0]}]" if len(at) == 1 else "", "item"), 1
    if issubclass(kind, (set, frozenset)):
        return Step("a member", name, "", "item"), 1
    return _attribute(parent, names_of(parent, child)), 1


def _attribute(x: Any, names: list[str]) -> Step:
    noun = f"function `{x.__qualname__}`" if type(x) is types.FunctionType else f"{type(x).__name__} object"
    if not names:
        return Step("a part", noun, "", "other")
    return Step(f"attribute {_ticks(['.' + name for name in names])}", noun, f".{names[0]}")


def _key(key: Any) -> str:
    """A key as code. Keys of other than basic types show only their type, because their repr may run any code."""
    text = repr(key) if type(key) in (str, int, float, bool, bytes, type(None)) else f"<{type(key).__name__}>"
    return text if len(text) <= 40 else f"<{type(key).__name__} {text[:30]}...>"


def _listed(word: str, items: list[str]) -> str:
    if len(items) < 2:
        return f"{word} {''.join(items)}"
    shown, last = (items[:3], f"{len(items) - 3} more") if len(items) > 4 else (items[:-1], items[-1])
    return f"{word}s {', '.join(shown)} and {last}"


def _ticks(names: list[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _a(noun: str) -> str:
    return "an" if noun[:1].lower() in tuple("aeiou") else "a"


def chain_words(steps: list[Step], article: str = "") -> str:
    """ "item 0 of a list, which is attribute `.x` of a Story object". `article` is used for the last noun."""
    if not steps:
        return "a part of the interpreter's own objects"
    parts = [f"{step.phrase} of {'the' if '`' in step.noun else _a(step.noun)} {step.noun}" for step in steps[:-1]]
    if len(parts) > 4:
        parts[2:-1] = [f"held through {len(parts) - 3} more objects"]
    last = steps[-1]
    article = article or ("the" if "`" in last.noun else _a(last.noun))
    return ", which is ".join([*parts, f"{last.phrase} of {article} {last.noun}"])

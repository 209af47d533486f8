"""Reports what still refers to an object, in words that a notebook's reader understands.

Follows references backwards to names that users know: variables, outputs, tracebacks, generators, views. Independent of
models: a session is any object with `k_cache` and `v_cache`. `teachllama.memory` exports the public names.
"""

from __future__ import annotations

import gc
import html
import mmap
import re
import sys
import textwrap
import threading
import time
import traceback
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from teachllama.errors import ParameterError
from teachllama.memory.measuring import as_array
from teachllama.memory.words import GENERATORS, Step, chain_words, describe, is_function, locals_of, names_of, referents

KINDS = (
    "variable", "local", "output", "traceback", "generator", "item", "attribute", "closure", "view", "cycle", "other",
)  # fmt: skip


@dataclass(frozen=True)
class Holder:
    """One thing that keeps an object, or its memory, alive."""

    kind: str  # one of KINDS
    text: str  # a description
    advice: str  # how to release the object


@dataclass(frozen=True, repr=False)
class Report:
    """The result of `who_refers_to`, as text; it holds no objects. Empty and false if nothing refers to the object."""

    title: str
    holders: tuple[Holder, ...]
    complete: bool = True  # False: the search reached its limits, and there may be more holders
    _SHOWN = 20

    def __len__(self) -> int:
        return len(self.holders)

    def __iter__(self) -> Iterator[Holder]:
        return iter(self.holders)

    @property
    def kinds(self) -> set[str]:
        """The kinds of holders found, from `KINDS`."""
        return {holder.kind for holder in self.holders}

    def _tail(self) -> list[str]:
        more = len(self.holders) - self._SHOWN
        tail = [f"and {more} more, in .holders"] if more > 0 else []
        return tail if self.complete else [*tail, "the search met its limits: there may be more"]

    def __repr__(self) -> str:
        lines = [self.title]
        for i, holder in enumerate(self.holders[: self._SHOWN], 1):
            for first, text in ((f"{i:3}. ", holder.text), ("     to let go: ", holder.advice)):
                lines += textwrap.wrap(first + text, 96, subsequent_indent=" " * 5, break_on_hyphens=False)
        return "\n".join(lines + [f"     ({line})" for line in self._tail()])

    def _repr_html_(self) -> str:
        def words(text: str) -> str:
            return re.sub("`(.+?)`", r"<code>\1</code>", html.escape(text, quote=False))

        shown = self.holders[: self._SHOWN]
        items = "".join(f"<li>{words(h.text)}<br><i>to let go:</i> {words(h.advice)}</li>" for h in shown)
        tail = "".join(f"<p>({words(line)})</p>" for line in self._tail())
        return f"<p>{words(self.title)}</p><ol>{items}</ol>{tail}"


def who_refers_to(obj: Any, *, max_objects: int = 2000, seconds: float = 10.0) -> Report:
    """Finds what keeps `obj` alive, and describes each holder and how to release the object.

    Follows references backwards from the object to names that users know: notebook variables, outputs, attributes,
    tracebacks, generators. For a session it also searches for arrays that view its cache, because these keep the
    memory from being freed; for an array, for those that share its memory. Weak references do not count. A value that a
    running call or loop holds without a name cannot be found.

    Args:
        obj: any object. To ask later about an object that may be gone by then, see `watch`.
        max_objects: stop after following this many objects.
        seconds: stop after about this time. Each step backwards examines every object of the process once.

    Raises:
        ParameterError: obj is None.
    """
    if obj is None:
        raise ParameterError("found None, which everything refers to; expected an object such as a session")
    target, memory, name = _Node(obj), _Memory.of(obj), type(obj).__name__
    del obj  # if the search is interrupted, its traceback must not become another holder
    return _report(target, memory, name, max_objects, seconds)


class Watch:
    """A weak reference to an object, to find out later what keeps it alive. Create one with `watch`, and print it."""

    def __init__(self, obj: Any):
        try:
            self._ref = weakref.ref(obj)
        except TypeError:
            raise ParameterError(
                f"found {type(obj).__name__}, which takes no weak references; expected a session, a model or an array"
            ) from None
        self._memory, self._name = _Memory.of(obj), type(obj).__name__

    @property
    def alive(self) -> bool:
        """Whether the object still exists. Its memory may outlive it; see `holders`."""
        return self._ref() is not None

    def holders(self) -> Report:
        """As `who_refers_to`. If the object is gone, reports what still holds its memory."""
        return _report(_Node(self._ref()), self._memory, self._name)

    def __repr__(self) -> str:
        return repr(self.holders())

    def _repr_html_(self) -> str:
        return self.holders()._repr_html_()


def watch(obj: Any) -> Watch:
    """Keeps a weak reference to `obj`, to find out later whether it is gone and, if not, why.

    Use `.alive`, `.holders()` or `print(watch)` for that. Call this before `session.close()`, because the address of a
    closed session's cache is unknown.

    Raises:
        ParameterError: objects of this type do not support weak references (numbers, text, lists).
    """
    return Watch(obj)


def forget_history() -> None:
    """Releases what Python and IPython keep by themselves: displayed results, and the last error with its traceback.

    Clears `Out`, `_`, `__`, `___`, `_1`, `_2` and so on, IPython's own copies of these, its record of the last cell,
    and `sys.last_value` and the like, then collects garbage. The usual ways do less: `del Out[5]` leaves `_5` and `_`;
    `%reset -f out` leaves a hidden copy of `_` (IPython 9) and all tracebacks; `traceback.clear_frames` leaves the copy
    of a call's variables that was made when the error was shown (Python 3.11 and 3.12).
    """
    import builtins

    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    if not callable(getattr(builtins, "_", callable)):  # set by the plain Python prompt; a callable `_` is gettext's
        del builtins._  # type: ignore[attr-defined]
    shell = _ipython()
    if shell is None:
        return
    shell.user_ns.get("_oh", {}).clear()
    for namespace in (shell.user_ns, shell.user_ns_hidden, vars(shell.displayhook)):
        for name in [name for name in namespace if _RESULT.fullmatch(name)]:
            if name.strip("_"):
                del namespace[name]
            else:
                namespace[name] = ""  # IPython keeps updating `_` only while all its copies agree
    if hasattr(shell.InteractiveTB, "tb"):
        shell.InteractiveTB.tb = None
    if (last := shell.last_execution_result) is not None:
        last.result = last.error_in_exec = None
    gc.collect()  # showing an error leaves its traceback in a reference cycle


_RESULT = re.compile(r"_{1,3}|_\d+")  # the names under which results are kept


def _ipython() -> Any:
    """The running IPython shell, or None. Never imports IPython."""
    get = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get() if get is not None else None


def _report(target: _Node, memory: _Memory, name: str, max_objects: int = 2000, seconds: float = 10.0) -> Report:
    gone = target.obj is None
    try:
        holders, complete = _find(target, memory, max_objects, seconds)
    except BaseException as e:  # Ctrl-C
        traceback.clear_frames(e.__traceback__)
        raise
    finally:
        target.obj = None
    things = "1 thing refers" if len(holders) == 1 else f"{len(holders)} things refer"
    if gone:
        title = f"The {name} is gone, but {things} to its memory:" if holders else f"gone: nobody refers to the {name}"
    else:
        title = f"{things} to this {name}:" if holders else f"Nothing refers to this {name} but the call that asks."
    return Report(title, holders, complete)


def _find(target: _Node, memory: _Memory, max_objects: int, seconds: float) -> tuple[tuple[Holder, ...], bool]:
    """Holders of an object (None: it is gone) and of its memory, sorted, and whether the search was complete."""
    deadline = time.monotonic() + seconds
    places = _Places()
    scan = _Scan(target, memory, places)
    searches = [_Search([_Node(target.obj)], places, scan)] if target.obj is not None else []
    if scan.over:
        searches.append(_Search(list(scan.over.values()), places, scan, id(target.obj), memory.noun))
    found = {h.text: h for search in searches for h in search.run(max_objects, deadline)}
    order = sorted(found.values(), key=lambda h: (KINDS.index(h.kind), _natural(h.text)))
    return tuple(order), all(search.complete for search in searches)


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts `Out[9]` before `Out[10]`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


@dataclass(frozen=True)
class _Memory:
    """The address ranges of an object's array memory, without a reference to it."""

    ranges: tuple[tuple[int, int], ...] = ()  # (start, end) addresses
    owner: weakref.ref[Any] | None = None  # the object whose memory this is, if it supports weak references
    noun: str = ""

    @classmethod
    def of(cls, obj: Any) -> _Memory:
        """The memory of an array or a buffer, or of a session's `k_cache` and `v_cache`."""
        arrays, noun = [obj], "a NumPy array that shares its memory"
        if not isinstance(obj, np.ndarray):
            arrays, noun = [], "a NumPy view of its cache"
            for name in ("k_cache", "v_cache"):
                try:
                    arrays.append(getattr(obj, name, None))
                except Exception:  # a closed session has no cache
                    continue
            if isinstance(obj, (mmap.mmap, bytearray, memoryview)):
                try:
                    arrays, noun = [as_array(obj)], "a NumPy view of it"
                except ParameterError:  # closed, or strided
                    return cls()
        arrays = [array for array in arrays if isinstance(array, np.ndarray)]
        if not arrays:
            return cls()
        owner: Any = arrays[0]
        while isinstance(owner, (np.ndarray, memoryview)):
            below = owner.base if isinstance(owner, np.ndarray) else owner.obj
            if below is None:
                break
            owner = below
        try:
            return cls(tuple(map(_span, arrays)), weakref.ref(owner), noun)
        except TypeError:
            return cls(tuple(map(_span, arrays)), None, noun)

    def overlaps(self, array: np.ndarray) -> bool:
        low, high = _span(array)
        return any(low < end and start < high for start, end in self.ranges)


def _span(array: np.ndarray) -> tuple[int, int]:
    low, high = map(int, np.lib.array_utils.byte_bounds(array))
    return low, high if array.size else low


class _Node:
    """An object on the search path. Only nodes hold references to objects, so that a search can ignore its own."""

    __slots__ = ("child", "obj", "refers_to", "up")

    def __init__(self, obj: Any, child: int = -1):
        self.obj, self.child = obj, child  # child: index of the node through which it was found; -1 for a start node
        self.refers_to: list[int] = []  # indices of all nodes it refers to
        self.up: list[int] = []  # indices of all nodes that refer to it


class _Root(NamedTuple):
    """A place that users know by name."""

    name: str  # as written in code: session, Out[5]
    role: str  # "notebook variable"
    kind: str = "variable"
    of: str = ""  # " of the running function `f`"

    def __str__(self) -> str:
        return self.name if " " in self.name else f"`{self.name}`"


class _Places:
    """The places users know: namespaces of modules and of the notebook, variables of running calls, saved errors."""

    def __init__(self) -> None:
        self.namespaces: dict[int, Callable[[str], _Root | None]] = {}  # id of a dictionary: describes a name in it
        self.roots: dict[int, list[_Root]] = {}  # id of an object: the places that hold it
        self.ends: set[int] = set()  # ids of saved errors, which are not followed further
        self.errors: dict[int, str] = {}  # id of a frame in a saved error's traceback: the error's type
        shell = _ipython()
        if shell is not None:
            self._add_notebook(shell)
        for key, module in list(sys.modules.items()):
            self.namespaces.setdefault(id(getattr(module, "__dict__", None)), _global_of(key))
        self._add_errors(shell)
        self._add_running()

    def _add_notebook(self, shell: Any) -> None:
        def result(name: str, of: str = ", in IPython's own copy") -> _Root | None:
            role = "output history" if name.strip("_") else "last result"
            return _Root(name, role, "output", of) if _RESULT.fullmatch(name) else None

        hook, last = shell.displayhook, shell.last_execution_result
        self.namespaces[id(shell.user_ns)] = lambda name: result(name, "") or _Root(name, "notebook variable")
        self.namespaces[id(shell.user_ns.get("_oh"))] = lambda name: _Root(f"Out[{name}]", "output history", "output")
        self.namespaces.update(dict.fromkeys((id(shell.user_ns_hidden), id(hook), id(vars(hook))), result))
        if last is not None:
            record = _Root("IPython's record of the last cell", "last result", "output")
            self.namespaces.update(dict.fromkeys((id(last), id(vars(last))), lambda name: record))

    def _add_errors(self, shell: Any) -> None:
        last = getattr(shell, "last_execution_result", None)
        kept = {f"sys.{name}": getattr(sys, name, None) for name in ("last_value", "last_exc", "last_traceback")}
        kept["IPython's record of the last cell"] = getattr(last, "error_in_exec", None)
        kept["IPython's InteractiveTB.tb"] = getattr(getattr(shell, "InteractiveTB", None), "tb", None)
        for name, top in kept.items():
            todo: list[tuple[Any, str]] = [(top, "error")]
            while todo:
                item, error = todo.pop()
                if item is None or id(item) in self.ends:
                    continue
                self.ends.add(id(item))
                self.roots[id(item)] = [_Root(name, "last error", "traceback")]
                if isinstance(item, BaseException):
                    below = [item.__context__, item.__cause__, item.__traceback__, *getattr(item, "exceptions", ())]
                    todo += [(x, type(item).__name__) for x in below]
                elif isinstance(item, types.TracebackType):
                    todo += [(item.tb_next, error), (item.tb_frame, error)]
                else:
                    self.errors[id(item)] = error

    def _add_running(self) -> None:
        # From Python 3.11 on, a running call's variables are not in its frame object, so the collector can't see them.
        for frame, where in _running():
            of = f" of the running function `{frame.f_code.co_qualname}`{where}"
            if not is_function(frame):
                self.namespaces.setdefault(id(frame.f_locals), lambda name, of=of: _Root(name, "variable", "local", of))  # type: ignore[misc]
                continue
            for name, value in locals_of(frame).items():
                self.roots.setdefault(id(value), []).append(_Root(name, "local variable", "local", of))
            if sys.version_info < (3, 13):  # if locals() was called, its result lives until the call ends
                self.roots[id(frame.f_locals)] = [_Root("locals()", "result", "local", of)]
                locals_of(frame)


def _global_of(module: str) -> Callable[[str], _Root | None]:
    if module in ("builtins", "threading"):  # the plain Python prompt's `_`; running threads, which `_running` covers
        return lambda name: _Root(name, "last result", "output") if name == "_" else None
    return lambda name: _Root(name if module == "__main__" else f"{module}.{name}", "global variable")


def _running() -> Iterator[tuple[types.FrameType, str]]:
    """Every running call of Python code outside this folder, with the name of its thread unless it is this one.

    Keeps no frame of this folder, not even its own. After its call returned, such a frame would stay alive in a
    reference cycle with its own variables, and keep their values alive.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    tops = sys._current_frames()
    tops[threading.get_ident()] = sys._getframe(1)
    for ident in list(tops):
        where = "" if ident == threading.get_ident() else f" in thread {names.get(ident, 'without a name')}"
        frame: types.FrameType | None = tops.pop(ident)
        while frame is not None:
            if frame.f_globals.get("__package__") != __package__:
                yield frame, where
            frame = frame.f_back


class _Scan:
    """Examines once everything that the process's containers refer to, to find what the garbage collector misses.

    For the collector, NumPy arrays are not containers: it does not know whose memory an array views, nor what an object
    array contains. Nor does it track dictionaries and tuples that contain only such objects.
    """

    def __init__(self, target: _Node, memory: _Memory, places: _Places):
        self.target = target
        self.over: dict[int, _Node] = {}  # arrays over that memory, and the mapping under them, by id
        self.parents: dict[int, list[_Node]] = {}  # referrers that the collector misses, by the object's id
        owner = memory.owner() if memory.owner is not None else None
        if memory.owner is not None and owner is None:
            memory = _Memory()  # unmapped: something else may be at those addresses now
        self.memory = memory
        if owner is not None and owner is not target.obj and not isinstance(owner, np.ndarray):
            self.over[id(owner)] = _Node(owner)
        self.wanted: set[type] = {np.ndarray, dict, tuple}
        for frame, _ in _running():
            if is_function(frame):
                self._sweep([locals_of(frame)], 0)
        everything = gc.get_objects()
        try:
            for i in range(0, len(everything), 4096):
                self._sweep(everything[i : i + 4096], 0)
        finally:
            everything.clear()  # the list and this call's frame refer to each other: a cycle

    def _sweep(self, group: Sequence[Any], depth: int) -> set[int]:
        """Ids of the containers that lead to a relevant array, from a group and the untracked containers in it."""
        below = gc.get_referents(*group)
        self.wanted.update(t for t in set(map(type, below)) if issubclass(t, np.ndarray))
        below = [x for x in below if type(x) in self.wanted]
        hits = {id(x) for x in below if issubclass(type(x), np.ndarray) and self._matters(x)}
        inner = [x for x in below if type(x) in (dict, tuple) and not gc.is_tracked(x)]
        if inner and depth < 4:
            hits |= self._sweep(inner, depth + 1)
        if not hits or not depth:  # the collector reports tracked containers later
            return hits
        holding = [(x, c) for c in group for x in gc.get_referents(c) if id(x) in hits]
        for x, container in holding:
            self._add_parent(x, container)
        return {id(container) for _, container in holding}

    def _matters(self, array: np.ndarray) -> bool:
        target = self.target.obj
        matters = array is target
        if not matters and self.memory.overlaps(array):
            self.over.setdefault(id(array), _Node(array))
            matters = True
        if target is not None and array.dtype.hasobject and array.size <= 100_000:
            for element in array.flat:
                if element is target:
                    self._add_parent(target, array)
                    return True
        return matters

    def _add_parent(self, x: Any, parent: Any) -> None:
        known = self.parents.setdefault(id(x), [])
        if not any(node.obj is parent for node in known):
            known.append(_Node(parent))


class _Search:
    """Follows references backwards, breadth first, from some objects to the places users know."""

    def __init__(self, start: list[_Node], places: _Places, scan: _Scan, wall: int = 0, noun: str = ""):
        self.nodes, self.n_starts = start, len(start)
        self.places, self.scan = places, scan
        self.wall = wall  # id of the session whose memory is searched for; its own references end with it
        self.noun = noun  # what the start nodes are to the object; empty if the start is the object itself
        self.complete = True
        self.roots: dict[int, list[_Root]] = {}  # by node
        self.held: set[int] = set()  # nodes that a known place holds, even under a name that users don't know
        self.cycles: list[int] = []  # nodes that the start refers to

    def run(self, max_objects: int, deadline: float) -> list[Holder]:
        nodes = self.nodes
        seen = {id(node.obj): i for i, node in enumerate(nodes)}
        done = 0
        while done < len(nodes):
            if done > max_objects or time.monotonic() > deadline:
                self.complete = False
                break
            group = range(done, min(done + 32, len(nodes)))  # the collector compares every reference with each node
            done = group.stop
            for i in group:
                for root in self.places.roots.get(id(nodes[i].obj), ()):
                    self._add_root(i, root)
            here = {id(nodes[i].obj): i for i in group if id(nodes[i].obj) not in self.places.ends}
            targets = tuple([nodes[i].obj for i in here.values()])
            referrers = gc.get_referrers(*targets) if targets else []
            skip = {id(targets), id(referrers), self.wall}
            referrers += [parent.obj for key in here for parent in self.scan.parents.get(key, ())]
            for referrer in referrers:
                if id(referrer) in skip or self._is_noise(referrer):
                    continue
                below = list(dict.fromkeys(here[id(x)] for x in referents(referrer) if id(x) in here))
                if self._is_namespace(referrer, below):
                    continue
                j = seen.get(id(referrer), len(nodes))
                if j == len(nodes):
                    if j - done > 500:  # for example a million tuples in a list: follow only some of them
                        self.complete = False
                        continue
                    seen[id(referrer)] = j
                    nodes.append(_Node(referrer, below[0]))
                elif j < self.n_starts and not self.noun:
                    self.cycles += below
                nodes[j].refers_to += below
                for i in below:
                    nodes[i].up.append(j)
            del targets, referrers
        return self._holders()

    def _is_noise(self, referrer: Any) -> bool:
        """Whether the referrer belongs to this search, or is a running generator, whose variables are known already."""
        kind = type(referrer)
        if kind in GENERATORS:
            return bool(getattr(referrer, f"{GENERATORS[kind]}_running"))
        # a session's finalizer refers to its mapping, as the session does, and is freed with the session
        return kind in (_Node, types.ModuleType) or (bool(self.noun) and kind.__qualname__ == "finalize._Info")

    def _add_root(self, i: int, root: _Root | None) -> None:
        self.held.add(i)
        if root is not None:
            self.roots.setdefault(i, []).append(root)

    def _is_namespace(self, referrer: Any, below: list[int]) -> bool:
        """Whether the referrer is a namespace. If so, records the names under which it holds these nodes."""
        words = self.places.namespaces.get(id(referrer))
        if words is None and type(referrer) is dict and "__builtins__" in referrer:
            words = _global_of("__main__")  # code that exec ran, or a module that is no longer listed
        if words is not None:
            for i in below:
                for name in names_of(referrer, self.nodes[i].obj):
                    self._add_root(i, words(name))
            return True
        if issubclass(type(referrer), type):
            for i in below:
                self._add_root(i, None)
                namespace, child = self.nodes[i].obj, self.nodes[i].child
                if type(namespace) is dict and child >= 0:
                    for name in names_of(namespace, self.nodes[child].obj):
                        self._add_root(child, _Root(f"{referrer.__qualname__}.{name}", "class attribute"))
            return True
        return False

    def _holders(self) -> list[Holder]:
        found = []
        for i, roots in self.roots.items():
            steps = self._steps(self._path(i))
            roots = sorted(set(roots), key=lambda r: (KINDS.index(r.kind), " " in r.name, _natural(r.name), r.of))
            outputs = list({root.name: root for root in reversed(roots) if root.kind == "output"}.values())[::-1]
            others = [root for root in roots if root.kind != "output"]
            groups = [others + outputs] if steps else [*([root] for root in others), outputs]
            found += [self._holder(i, steps, group) for group in groups if group]
        # Nodes that a known place holds are explained, and so are those that only lead back to the object itself.
        explained = set(self.held)
        todo = list(explained)
        while todo:
            new = set(self.nodes[todo.pop()].refers_to) - explained
            explained |= new
            todo += new
        for i in dict.fromkeys(self.cycles):
            path = self._path(i)
            explained |= set(path)
            text = f"a reference cycle: it is {chain_words(self._steps([*path, path[0]]), 'this')}"
            found.append(Holder("cycle", text, "break one link, or `gc.collect()` once no name is left"))
        if self.complete:
            for i in range(self.n_starts, len(self.nodes)):
                if self.nodes[i].child < self.n_starts and i not in explained:
                    found += self._unnamed(i)
        return found

    def _path(self, i: int) -> list[int]:
        """The path from a start node up to node i."""
        path = [i]
        while (i := self.nodes[i].child) >= 0:
            path.append(i)
        return path[::-1]

    def _steps(self, path: list[int]) -> list[Step]:
        return describe([self.nodes[i].obj for i in path], self.places.errors)

    def _holder(self, i: int, steps: list[Step], roots: list[_Root]) -> Holder:
        root, *others = roots
        shown = [f"{other}{other.of}" for other in others[:4]] + [f"{len(others) - 4} more"] * (len(others) > 4)
        also = f"also {', '.join(shown)}" if others else ""
        if steps:
            role = f"{'the' if root.kind in ('output', 'traceback') else 'a'} {root.role}{root.of}"
            joint = ", held by" if "`" in steps[-1].noun else ""  # the noun has a name of its own
            text = f"{chain_words(steps, 'the')}{joint} {root} ({'; '.join(filter(None, [role, also]))})"
        elif root.kind == "output":
            text = f"{root}, the {root.role}{root.of}" + (f" ({also})" if also else "")
        else:
            text = f"the {root.role} {root}{root.of}"
        kind = root.kind
        if steps and kind not in ("output", "traceback"):
            kind = min((step.kind for step in steps), key=KINDS.index)
        return Holder("view" if self.noun else kind, text + self._what(i), self._advice(i, steps, roots))

    def _what(self, i: int) -> str:
        """Describes the start of the path to node i, if it is not the object itself."""
        array = self.nodes[self._path(i)[0]].obj
        if not self.noun:
            return ""
        return f": {self.noun}, shape {array.shape}" if isinstance(array, np.ndarray) else ": the mapping itself"

    def _advice(self, i: int, steps: list[Step], roots: list[_Root]) -> str:
        name, kinds = roots[0].name, {root.kind for root in roots}
        own = [root.name for root in roots if root.kind == roots[0].kind in ("variable", "local")]
        names = dict.fromkeys(own) if name != "locals()" else {}
        releases = [f"`del {name}`" for name in names]
        if kinds & {"output", "traceback"}:
            releases.append("`teachllama.memory.forget_history()`")
        ways = []
        if names and steps and len(steps) <= 4 and steps[0].noun != "tuple" and all(step.access for step in steps):
            ways.append(f"`del {name}{''.join(step.access for step in reversed(steps))}`")
        elif names and len(steps) == 1 and steps[0].release:
            ways.append(f"`{name}{steps[0].release}`")
        if releases and (len(releases) == 1 or not ways):
            ways.append(" and ".join(releases))
        if self.noun and names and not steps and isinstance(self.nodes[i].obj, np.ndarray):
            ways.append(f"keep a copy instead: `{name} = {name}.copy()`")
        return ", or ".join(ways + ["let the function return"] * ("local" in kinds))

    def _unnamed(self, i: int) -> list[Holder]:
        """Holders for a direct referrer that no known place holds: a cycle, running code, or an extension module."""
        came = {i: self.nodes[i].child}
        todo = deque([i])
        while todo:
            j = todo.popleft()
            if not self.nodes[j].up:
                if self.noun:
                    return []  # buffers between an array and its mapping look like this
                path = [j]
                while (j := came.get(j, -1)) >= 0:
                    path.append(j)
                steps = self._steps(path[::-1])
                text = f"{chain_words(steps)}, which only running code (a loop, a call) or an extension module holds"
                return [
                    Holder(min((s.kind for s in steps), key=KINDS.index, default="other"), text, "let that code finish")
                ]
            for k in self.nodes[j].up:
                if k not in came:
                    came[k] = j
                    todo.append(k)
        path = self._path(i)
        while len(path) < 4:  # one step's description covers up to three links
            path.append(self.nodes[path[-1]].up[0])
        text = f"a reference cycle that nothing else refers to: it is {chain_words(self._steps(path)[:1])}"
        return [Holder("cycle", text + self._what(i), "`gc.collect()`")]

"""Turns a recorded forward pass into instructions for compiled code: places of values, and barriers between threads.

A program has two forms. *Rows*, for one token or a few: the residual stream is so small that each thread keeps its own
copy and repeats norms, rotations and additions; only products with weights and attention are split. *Tiles*, for many
tokens: everything is shared, and split by rows of weights or by tiles of tokens.

Barriers are derived. Each instruction declares what it reads and writes, and how its work is split. If it conflicts
with an instruction since the last barrier, and the two are not split in the same way, a barrier is put before it.

Independent of the addresses of buffers, which `compiled.py` sets for each call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from teachllama.kernels.fields import BLOCK, CHUNK, INSTRUCTION, PANEL, WIDTH, Act, Op, Score
from teachllama.kernels.record import Program, Step, Value
from teachllama.spec import AttentionSpec, ModelSpec, Rope, RopePairs
from teachllama.weights import Experts, Linear

ALONE = ("heads", 1)  # split by tiles of tokens: the thread that wrote a tile may continue with it
Split = tuple[Any, ...] | None  # None: repeated by each thread


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value is stored: an offset, in float32 per row of the batch, in the shared or the thread's own buffer."""

    offset: int
    width: int
    private: bool

    @property
    def operand(self) -> int:
        """Its encoding in instructions."""
        return 2 * self.offset + self.private


@dataclass(slots=True)
class Instructions:
    """A program for one of the two forms."""

    table: np.ndarray  # (n,) INSTRUCTION
    table_at: int  # its address
    shared_width: int  # float32 per row
    private_width: int  # float32 per row, for each thread
    parts_width: int  # float32 that one chunk of one token's attention writes, over all heads
    scratch: int  # float32 that each thread needs besides, for any batch
    scratch_row: int  # and for each row of the batch
    ropes: tuple[Rope, ...]  # the rotations it uses; the `table` of an instruction is an index
    split: tuple[bool, ...]  # for each instruction: True if its work is split among threads, False if each repeats it

    def listing(self) -> list[tuple[str, str]]:
        """Each instruction's name, and "split", "repeated" or, at a barrier, "all meet"."""
        names = [Op(int(op)).name.lower() for op in self.table["op"]]
        how = ["all meet" if name == "barrier" else "split" if s else "repeated" for name, s in zip(names, self.split)]
        return list(zip(names, how, strict=True))

    def summary(self) -> str:
        """How many instructions there are, how many of them are split, and how often threads meet."""
        how = [h for _, h in self.listing()]
        return (
            f"{len(how)} instructions; {how.count('split')} split among threads, {how.count('repeated')} repeated by "
            f"each; threads meet {how.count('all meet')} times"
        )


@dataclass(slots=True)
class _Buffer:
    """Allocates and frees offsets, first fit. Sizes are whole cache lines."""

    free: list[tuple[int, int]] = field(default_factory=lambda: [(0, 1 << 40)])
    top: int = 0

    def take(self, width: int) -> int:
        size = -(-width // 16) * 16
        for i, (at, room) in enumerate(self.free):
            if room >= size:
                self.free[i] = (at + size, room - size)
                self.top = max(self.top, at + size)
                return at
        raise AssertionError("the last free range has no end")

    def give(self, at: int, width: int) -> None:
        self.free = sorted([*self.free, (at, -(-width // 16) * 16)])
        merged = [self.free[0]]
        for begin, room in self.free[1:]:
            last, size = merged[-1]
            if last + size == begin:
                merged[-1] = (last, size + room)
            else:
                merged.append((begin, room))
        self.free = merged


def lower(program: Program, spec: ModelSpec, *, few: bool) -> Instructions:
    """The instructions of a program, for one token or a few (`few`) or for tiles of tokens."""
    return (_Rows if few else _Tiles)(program, spec).run()


class _Lowering:
    """The common part of both forms: places of values, hazards, and the list of instructions."""

    def __init__(self, program: Program, spec: ModelSpec):
        self.program, self.spec = program, spec
        self.rows: list[dict[str, Any]] = []
        self.split: list[bool] = []
        self.where: dict[Value, Place] = {}
        self.buffers = {False: _Buffer(), True: _Buffer()}
        self.touched: list[tuple[Any, int, int, bool, Split]] = []  # accesses since the last barrier
        self.given_up: list[Place] = []  # shared places that may be used again after the next barrier
        self.last_use = {value: i for i, step in enumerate(program.steps) for value in step.inputs}
        self.ropes: list[Rope] = []
        self.scratch = self.scratch_row = self.parts_width = 0
        self.at = 0

    def run(self) -> Instructions:
        steps = self.program.steps
        while self.at < len(steps):
            first, step = self.at, steps[self.at]
            getattr(self, step.op)(step, *step.args)
            self.at += 1
            for value in {v for s in steps[first : self.at] for v in s.inputs}:
                if self.last_use[value] < self.at and value in self.where:
                    self.drop(self.where.pop(value))
        self.barrier()
        table = np.zeros(len(self.rows), INSTRUCTION)
        for name in {name for row in self.rows for name in row}:
            table[name] = [row.get(name, 0) for row in self.rows]
        tops = self.buffers[False].top, self.buffers[True].top
        sizes = self.parts_width, self.scratch, self.scratch_row
        return Instructions(table, table.ctypes.data, *tops, *sizes, tuple(self.ropes), tuple(self.split))

    # ---- places ----

    def take(self, width: int, private: bool) -> Place:
        return Place(self.buffers[private].take(width), width, private)

    def drop(self, place: Place) -> None:
        if place.private:
            self.buffers[True].give(place.offset, place.width)
        else:  # a slower thread may still read it
            self.given_up.append(place)

    def ends(self, value: Value) -> bool:
        """Whether this step is the last that reads the value."""
        return self.last_use.get(value, self.at) <= self.at

    def takes_over(self, value: Value, out: Value) -> Place:
        """Gives `out` the place of a value whose last use is here; otherwise a new place of the same kind."""
        place = self.where[value]
        if self.ends(value):
            del self.where[value]
            self.where[out] = place
        else:
            self.where[out] = self.take(out.width, place.private)
        return self.where[out]

    # ---- instructions ----

    def barrier(self) -> None:
        self.rows.append({"op": Op.BARRIER})
        self.split.append(False)
        self.touched.clear()
        for place in self.given_up:
            self.buffers[False].give(place.offset, place.width)
        self.given_up.clear()

    def emit(self, op: Op, split: Split, reads: list[Any], writes: list[Any], **fields: Any) -> None:
        """Adds an instruction, and a barrier before it if one is needed.

        Args:
            reads, writes: places, or names of other shared data (the cache of a layer).
        """
        new = [(*self._range(p), False, split) for p in reads] + [(*self._range(p), True, split) for p in writes]
        new = [n for n in new if n[0] is not None]
        if any(self._clash(old, n) for old in self.touched for n in new):
            self.barrier()
        self.touched += new
        self.rows.append({"op": op, **fields})
        self.split.append(split is not None)

    @staticmethod
    def _range(thing: Any) -> tuple[Any, int, int]:
        if isinstance(thing, Place):
            return (None, 0, 0) if thing.private else ("shared", thing.offset, thing.offset + thing.width)
        return thing, 0, 1

    @staticmethod
    def _clash(a: tuple[Any, int, int, bool, Split], b: tuple[Any, int, int, bool, Split]) -> bool:
        overlap = a[0] == b[0] and a[1] < b[2] and b[1] < a[2]
        same_share = a[4] is not None and a[4] == b[4] and (a[1], a[2]) == (b[1], b[2])
        return overlap and (a[3] or b[3]) and not same_share

    def needs(self, floats: int, a_row: int = 0) -> None:
        """Records how much scratch memory a thread needs."""
        self.scratch, self.scratch_row = max(self.scratch, floats), max(self.scratch_row, a_row)

    def rope_fields(self, s: AttentionSpec) -> dict[str, Any]:
        rope = s.rope
        assert rope is not None
        if rope not in self.ropes:
            self.ropes.append(rope)
        return {
            "table": self.ropes.index(rope),
            "first": rope.first,
            "pairs": len(rope.frequencies),
            "neox": rope.pairs == RopePairs.NEOX,
            "head_dim": s.head_dim,
        }

    @staticmethod
    def matrix(m: Linear) -> dict[str, Any]:
        kind, address = m.matrix.part
        return {"w": address, "kind": kind, "rows": m.rows, "columns": m.columns, "bias": address_of(m.bias)}

    @classmethod
    def expert_matrices(cls, m: Experts) -> dict[str, Any]:
        """All experts' gate, up and down matrices: (w, kind, bias), (w2, ...), (w3, ...)."""
        found = zip(("", "2", "3"), map(cls.matrix, (m.gate, m.up, m.down)))
        return {name + n: fields[name] for n, fields in found for name in ("w", "kind", "bias")}

    @staticmethod
    def routing(s: Any) -> dict[str, Any]:
        r = s.experts
        return {
            "n_experts": r.n_experts,
            "n_used": r.n_used,
            "scores": Score[r.scores.name],
            "normalize": r.normalize,
            "scale": r.scale,
            "n_groups": r.n_groups,
            "n_groups_used": r.n_groups_used,
        }


def address_of(array: np.ndarray | None) -> int:
    """The address of an array's numbers; 0 for None."""
    if array is None:
        return 0
    if array.dtype not in (np.float32, np.int64) or not array.flags.c_contiguous:
        raise ValueError("compiled code reads float32 or int64 side by side")  # caller bug
    return array.ctypes.data


class _Rows(_Lowering):
    """One token, or a few: private vectors for each of them, and shared ones where the work is split."""

    def run(self) -> Instructions:
        self.parts_width = max(s.attention.n_heads * (s.attention.value_dim + 16) for s in self.spec.layers)
        return super().run()

    def product(self, x: Place, m: Linear, out: Place, step: int = 4) -> tuple[Any, ...]:
        split = ("rows", m.rows, step)
        self.emit(Op.LINEAR, split, [x], [out], x=x.operand, out=out.operand, step=step, **self.matrix(m))
        return split

    def own(self, value: Value) -> Place:
        self.where[value] = self.take(value.width, True)
        return self.where[value]

    def shared(self, value: Value) -> Place:
        self.where[value] = self.take(value.width, False)
        return self.where[value]

    def embed(self, step: Step, embedding: Linear, batch: Any, scale: float) -> None:
        out = self.own(step.out)
        self.emit(Op.EMBED, None, [], [out], out=out.operand, scale=scale, **self.matrix(embedding))

    def norm(self, step: Step, x: Value, weight: np.ndarray) -> None:
        self._norm(self.where[x], weight, self.own(step.out))

    def _norm(self, x: Place, weight: np.ndarray, out: Place) -> None:
        fields = {"heads": x.width // len(weight), "columns": len(weight), "w": address_of(weight)}
        self.emit(Op.NORM, None, [x], [out], x=x.operand, out=out.operand, eps=self.spec.norm_eps, **fields)

    def linear(self, step: Step, x: Value, m: Linear) -> None:
        self.product(self.where[x], m, self.shared(step.out))

    def linear_heads(self, step: Step, x: Value, m: Linear, n_heads: int) -> None:
        place, out, fields = self.where[x], self.shared(step.out), self.matrix(m)
        fields |= {"heads": n_heads, "head_dim": x.width // n_heads, "value_dim": step.out.width // n_heads}
        split = ("heads", n_heads)
        self.emit(Op.LINEAR_HEADS, split, [place], [out], x=place.operand, out=out.operand, **fields)

    def concat(self, step: Step, a: Value, b: Value) -> None:
        out = self.own(step.out)
        for value, at in ((a, 0), (b, a.width)):
            place = self.where[value]
            fields = {"rows": value.width, "columns": out.width, "first": at}
            self.emit(Op.COPY, None, [place], [out], x=place.operand, out=out.operand, **fields)

    def rope(self, step: Step, x: Value, s: AttentionSpec, batch: Any) -> None:
        place = self.where[x]
        out = self.takes_over(x, step.out) if place.private else self.own(step.out)
        fields = self.rope_fields(s) | {"heads": x.width // s.head_dim}
        self.emit(Op.ROPE, None, [place], [out], x=place.operand, out=out.operand, **fields)

    def attend(
        self, step: Step, i: int, q: Value, k: Value, v: Value | None, s: AttentionSpec, sinks: Any, batch: Any
    ) -> None:
        places = [self.where[value] for value in (q, k, v) if value is not None]
        fields: dict[str, Any] = {"heads": s.n_heads, "kv_heads": s.n_kv_heads}
        fields |= {"head_dim": s.head_dim, "value_dim": s.value_dim}
        fields |= {"window": s.window or 0, "scale": s.scale, "softcap": s.softcap, "latent": s.latent, "layer": i}
        self.needs(s.n_heads // s.n_kv_heads * CHUNK + BLOCK * max(s.head_dim, s.value_dim))
        x, y = places[0].operand, places[1].operand
        self.emit(Op.ATTEND, ("attend", i), places, ["parts"], x=x, y=y, z=places[-1].operand, **fields)
        out = self.own(step.out)
        self.emit(Op.JOIN, None, ["parts"], [out], out=out.operand, w=address_of(sinks), **fields)

    def add(self, step: Step, x: Value, h: Value, norm: Any = None, scale: float = 1.0) -> None:
        y = self.where[h]
        if norm is not None:
            normed = self.take(h.width, True)
            self._norm(y, norm, normed)
            y = normed
        place = self.where[x]
        out = self.takes_over(x, step.out) if place.private else self.own(step.out)
        operands = {"x": place.operand, "y": y.operand, "out": out.operand}
        self.emit(Op.ADD, None, [place, y], [out], rows=x.width, scale=scale, **operands)
        if norm is not None:
            self.drop(y)

    def times_sigmoid(self, step: Step, x: Value, gate: Value) -> None:
        place, y, out = self.where[x], self.where[gate], self.own(step.out)
        operands = {"x": place.operand, "y": y.operand, "out": out.operand}
        self.emit(Op.TIMES_SIGMOID, None, [place, y], [out], rows=x.width, **operands)

    def gated(self, step: Step, x: Value, m: Any, s: Any) -> None:
        place, width = self.where[x], m.gate.rows
        gate, up = self.take(width, False), self.take(width, False)
        split = self.product(place, m.gate, gate, 16)
        self.product(place, m.up, up, 16)
        fields = {"activation": Act[s.activation.name], "rows": width, "step": 16}
        operands = {"x": gate.operand, "y": up.operand, "out": gate.operand}
        self.emit(Op.GATE, split, [gate, up], [gate], **operands, **fields)
        self.product(gate, m.down, self.shared(step.out))
        self.drop(gate)
        self.drop(up)

    def experts(self, step: Step, x: Value, m: Any, s: Any) -> None:
        place, routing, used = self.where[x], self.routing(s), s.experts.n_used
        hidden, dim = s.hidden_dim, x.width
        scores = self.take(m.router.rows, False)
        self.product(place, m.router, scores)
        chosen = self.take(2 * used, True)  # indices of experts, then their weights
        bias = address_of(m.selection_bias)
        self.needs(3 * m.router.rows + 2 * used)
        self.emit(Op.SELECT, None, [scores], [chosen], x=scores.operand, out=chosen.operand, bias=bias, **routing)

        both = self.take(2 * used * hidden, False)  # the gates of all chosen experts, then their up branches
        fields = self.expert_matrices(m) | {"rows": hidden, "columns": dim, "step": 16, "n_used": used}
        fields["activation"] = Act[s.activation.name]
        operands = {"x": place.operand, "z": chosen.operand, "out": both.operand}
        self.emit(Op.EXPERTS_UP, ("experts", hidden), [place, chosen], [both], **operands, **fields)

        fields = self.expert_matrices(m) | {"rows": dim, "columns": hidden, "step": 4, "n_used": used}
        out = self.shared(step.out)
        operands = {"x": both.operand, "z": chosen.operand, "out": out.operand}
        self.needs(dim)
        self.emit(Op.EXPERTS_DOWN, ("rows", dim, 4), [both, chosen], [out], **operands, **fields)
        for gone in (scores, chosen, both):
            self.drop(gone)

    def logits(self, step: Step, x: Value, w: Any, spec: ModelSpec, batch: Any) -> None:
        place = self.where[x]
        self.needs(0, x.width)
        fields = {"w2": address_of(w.output_norm), "eps": spec.norm_eps, **self.matrix(w.output)}
        self.emit(Op.LOGITS, ("rows", spec.vocab_size, 4), [place], [], x=place.operand, **fields)


class _Tiles(_Lowering):
    """Many tokens: everything is shared."""

    def place(self, value: Value) -> Place:
        self.where[value] = self.take(value.width, False)
        return self.where[value]

    def product(self, x: Place, m: Linear, out: Place, step: int = 8, add: bool = False) -> tuple[Any, ...]:
        split = ("rows", m.rows, step)
        reads = [x, out] if add else [x]
        self.needs(PANEL * m.columns)
        operands = {"x": x.operand, "out": out.operand}
        self.emit(Op.LINEAR, split, reads, [out], **operands, step=step, add=add, **self.matrix(m))
        return split

    def embed(self, step: Step, embedding: Linear, batch: Any, scale: float) -> None:
        out = self.place(step.out)
        self.needs(embedding.columns)
        self.emit(Op.EMBED, ALONE, [], [out], out=out.operand, scale=scale, **self.matrix(embedding))

    def norm(self, step: Step, x: Value, weight: np.ndarray) -> None:
        self._norm(self.where[x], weight, self.takes_over(x, step.out))

    def _norm(self, x: Place, weight: np.ndarray, out: Place) -> None:
        groups = x.width // len(weight)
        fields = {"heads": groups, "columns": len(weight), "rows": x.width, "w": address_of(weight)}
        operands = {"x": x.operand, "out": out.operand}
        self.emit(Op.NORM, ("heads", groups), [x], [out], **operands, eps=self.spec.norm_eps, **fields)

    def linear(self, step: Step, x: Value, m: Linear) -> None:
        """If the product is only added to the residual stream, it is written there directly."""
        place = self.where[x]
        stream = self.added_to(step.out)
        if stream is None:
            self.product(place, m, self.place(step.out))
            return
        self.at += 1  # the addition is done here
        self.product(place, m, self.takes_over(stream, self.program.steps[self.at].out), add=True)

    def added_to(self, value: Value) -> Value | None:
        """The x of a following add(x, value), if this is the last use of both, without norm and scale; else None."""
        following = self.program.steps[self.at + 1]
        if following.op != "add":
            return None
        x, h, *rest = following.args
        plain = not [a for a in rest[:1] if a is not None] and rest[1:] in ([], [1.0])
        once = self.last_use[value] == self.at + 1 == self.last_use[x]
        return x if h == value and plain and once else None

    def linear_heads(self, step: Step, x: Value, m: Linear, n_heads: int) -> None:
        place, out, fields = self.where[x], self.place(step.out), self.matrix(m)
        fields |= {"heads": n_heads, "head_dim": x.width // n_heads, "value_dim": step.out.width // n_heads}
        self.needs(PANEL * m.columns)
        split = ("own heads", n_heads)
        self.emit(Op.LINEAR_HEADS, split, [place], [out], x=place.operand, out=out.operand, **fields)

    def concat(self, step: Step, a: Value, b: Value) -> None:
        out = self.place(step.out)
        for value, at in ((a, 0), (b, a.width)):
            place = self.where[value]
            fields = {"rows": value.width, "columns": out.width, "first": at}
            self.emit(Op.COPY, ALONE, [place], [out], x=place.operand, out=out.operand, **fields)

    def rope(self, step: Step, x: Value, s: AttentionSpec, batch: Any) -> None:
        place, heads = self.where[x], x.width // s.head_dim
        out = self.takes_over(x, step.out)
        fields = self.rope_fields(s) | {"heads": heads}
        self.emit(Op.ROPE, ("heads", heads), [place], [out], x=place.operand, out=out.operand, **fields)

    def attend(
        self, step: Step, i: int, q: Value, k: Value, v: Value | None, s: AttentionSpec, sinks: Any, batch: Any
    ) -> None:
        for value, length, name in ((k, s.head_dim, "keys"), (v, s.value_dim, "values")):
            if value is not None:
                place = self.where[value]
                stored = {"heads": s.n_kv_heads, "head_dim": length, "layer": i, "latent": name == "values"}
                split = ("heads", s.n_kv_heads)
                self.emit(Op.STORE, split, [place], [("cache", i)], x=place.operand, **stored)
        fields: dict[str, Any] = {"heads": s.n_heads, "kv_heads": s.n_kv_heads}
        fields |= {"head_dim": s.head_dim, "value_dim": s.value_dim}
        fields |= {"window": s.window or 0, "scale": s.scale, "softcap": s.softcap, "latent": s.latent, "layer": i}
        place, out = self.where[q], self.place(step.out)
        self.needs(BLOCK * max(s.head_dim, s.value_dim))
        reads, operands = [place, ("cache", i)], {"x": place.operand, "out": out.operand}
        self.emit(Op.ATTEND, ("attend", i), reads, [out], **operands, w=address_of(sinks), **fields)

    def add(self, step: Step, x: Value, h: Value, norm: Any = None, scale: float = 1.0) -> None:
        y = self.where[h]
        if norm is not None:
            self._norm(y, norm, y if self.ends(h) else self.take(h.width, False))
        place = self.where[x]
        out = self.takes_over(x, step.out)
        operands = {"x": place.operand, "y": y.operand, "out": out.operand}
        self.emit(Op.ADD, ALONE, [place, y], [out], rows=x.width, scale=scale, **operands)

    def times_sigmoid(self, step: Step, x: Value, gate: Value) -> None:
        place, y = self.where[x], self.where[gate]
        out = self.takes_over(x, step.out)
        operands = {"x": place.operand, "y": y.operand, "out": out.operand}
        self.emit(Op.TIMES_SIGMOID, ALONE, [place, y], [out], rows=x.width, **operands)

    def gated(self, step: Step, x: Value, m: Any, s: Any) -> None:
        place, width = self.where[x], m.gate.rows
        gate, up = self.take(width, False), self.take(width, False)
        split = self.product(place, m.gate, gate, 16)
        self.product(place, m.up, up, 16)
        fields = {"activation": Act[s.activation.name], "rows": width, "step": 16}
        operands = {"x": gate.operand, "y": up.operand, "out": gate.operand}
        self.emit(Op.GATE, split, [gate, up], [gate], **operands, **fields)
        stream = self.added_to(step.out)
        if stream is None:
            self.product(gate, m.down, self.place(step.out))
        else:
            self.at += 1
            self.product(gate, m.down, self.takes_over(stream, self.program.steps[self.at].out), add=True)
        self.drop(gate)
        self.drop(up)

    def experts(self, step: Step, x: Value, m: Any, s: Any) -> None:
        place, routing, used = self.where[x], self.routing(s), s.experts.n_used
        hidden, dim = s.hidden_dim, x.width
        scores, chosen = self.take(m.router.rows, False), self.take(2 * used, False)
        self.product(place, m.router, scores)
        bias = address_of(m.selection_bias)
        self.needs(4 * m.router.rows + 2 * used)
        self.emit(Op.SELECT, ALONE, [scores], [chosen], x=scores.operand, out=chosen.operand, bias=bias, **routing)
        results = self.take(used * dim, False)
        fields = self.expert_matrices(m) | {"rows": hidden, "columns": dim, "n_used": used}
        fields |= {"n_experts": s.experts.n_experts, "activation": Act[s.activation.name]}
        self.needs(PANEL * max(hidden, dim), 2 * hidden + 2 * dim + 2)
        reads, operands = [place, chosen], {"x": place.operand, "z": chosen.operand, "out": results.operand}
        self.emit(Op.EXPERTS, ("experts",), reads, [results], **operands, **fields)
        out = self.place(step.out)
        operands = {"x": results.operand, "z": chosen.operand, "out": out.operand}
        self.emit(Op.COMBINE, ALONE, [results, chosen], [out], **operands, rows=dim, n_used=used)
        for gone in (scores, chosen, results):
            self.drop(gone)

    def logits(self, step: Step, x: Value, w: Any, spec: ModelSpec, batch: Any) -> None:
        place, h = self.where[x], self.take(x.width, False)
        self.needs(max(PANEL * x.width + PANEL * WIDTH, 2 * x.width))
        fields = {"w2": address_of(w.output_norm), "eps": spec.norm_eps, **self.matrix(w.output)}
        operands = {"x": place.operand, "out": h.operand}
        self.emit(Op.LOGITS, ("rows", spec.vocab_size, PANEL), [place], [h], **operands, **fields)

"""Records the forward pass: `forward` runs once with `RecordingOps`, which records each call and computes nothing.

The result is a `Program`, a list of steps, each with the values that its operation reads and the one it produces. NumPy
can replay it (`replay`), and `program.py` turns it into the instructions that compiled code replays. Tracing compilers
and CUDA graphs work in the same way.

Independent of buffers and threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from teachllama.batch import Batch
from teachllama.forward import forward
from teachllama.spec import AttentionSpec, FeedForwardSpec, ModelSpec
from teachllama.weights import Experts, Gated, Linear, Weights


@dataclass(frozen=True, slots=True)
class Value:
    """The result of a step: `width` numbers for each row of the batch."""

    number: int
    width: int

    def __str__(self) -> str:
        return f"%{self.number}"


class _TheBatch:
    def __repr__(self) -> str:
        return "batch"


BATCH: Any = _TheBatch()  # stands for the batch of a replay


@dataclass(frozen=True, slots=True)
class Step:
    """One call of an operation: `args` as `forward` passed them, with a `Value` for each result of an earlier step."""

    op: str
    args: tuple[Any, ...]
    out: Value

    @property
    def inputs(self) -> Iterator[Value]:
        """The values it reads."""
        return (a for a in self.args if isinstance(a, Value))

    def __str__(self) -> str:
        return f"{self.out!s:>6} = {self.op}({', '.join(_shown(a) for a in self.args if a is not None)})"


def _shown(arg: Any) -> str:
    if isinstance(arg, Linear):
        return f"<{arg.rows} x {arg.columns}{' + bias' if arg.bias is not None else ''}>"
    if isinstance(arg, Gated):
        return f"<gate, up: {arg.gate.rows} x {arg.gate.columns}; down>"
    if isinstance(arg, Experts):
        return f"<{arg.router.rows} experts>"
    if isinstance(arg, AttentionSpec):
        window = f", window {arg.window}" if arg.window else ""
        return f"<{arg.n_heads} heads of {arg.head_dim}, {arg.n_kv_heads} of keys{window}>"
    if isinstance(arg, (FeedForwardSpec, ModelSpec, Weights)):
        return f"<{type(arg).__name__}>"
    return f"<{arg.shape[0]}>" if hasattr(arg, "shape") else str(arg)


@dataclass(slots=True)
class Program:
    """The recorded forward pass of one model."""

    steps: list[Step] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))


def record(spec: ModelSpec, weights: Weights) -> Program:
    """Runs `forward` once and records it."""
    ops = RecordingOps()
    forward(ops, spec, weights, BATCH)
    return Program(ops.steps)


def replay(program: Program, ops: Any, batch: Batch) -> Any:
    """Runs a recorded program on any `ops`, such as `NumpyOps`; returns the logits that `forward` would return."""
    values: dict[Value, Any] = {}
    result = None
    for step in program.steps:
        args = [values[a] if isinstance(a, Value) else batch if a is BATCH else a for a in step.args]
        result = values[step.out] = getattr(ops, step.op)(*args)
    return result


class RecordingOps:
    """Records the operations of `forward`. Steps that do nothing, such as a norm without weight, are not recorded."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def _step(self, op: str, width: int, *args: Any) -> Value:
        self.steps.append(Step(op, args, Value(len(self.steps), width)))
        return self.steps[-1].out

    def embed(self, embedding: Any, batch: Any, scale: float) -> Value:
        return self._step("embed", embedding.columns, embedding, batch, scale)

    def norm(self, x: Value, weight: Any) -> Value:
        return x if weight is None else self._step("norm", x.width, x, weight)

    def linear(self, x: Value, m: Linear) -> Value:
        return self._step("linear", m.rows, x, m)

    def linear_heads(self, x: Value, m: Linear, n_heads: int) -> Value:
        kept = x.width // n_heads - m.columns
        return self._step("linear_heads", m.rows + n_heads * kept, x, m, n_heads)

    def concat(self, a: Value, b: Value) -> Value:
        return self._step("concat", a.width + b.width, a, b)

    def rope(self, x: Value, s: AttentionSpec, batch: Any) -> Value:
        return x if s.rope is None else self._step("rope", x.width, x, s, batch)

    def attend(self, i: int, q: Value, k: Value, v: Value | None, s: AttentionSpec, sinks: Any, batch: Any) -> Value:
        return self._step("attend", s.n_heads * s.value_dim, i, q, k, v, s, sinks, batch)

    def add(self, x: Value, h: Value, norm: Any = None, scale: float = 1.0) -> Value:
        return self._step("add", x.width, x, h, norm, scale)

    def gated(self, x: Value, m: Gated, s: FeedForwardSpec) -> Value:
        return self._step("gated", m.down.rows, x, m, s)

    def times_sigmoid(self, x: Value, gate: Value) -> Value:
        return self._step("times_sigmoid", x.width, x, gate)

    def experts(self, x: Value, m: Experts, s: FeedForwardSpec) -> Value:
        return self._step("experts", x.width, x, m, s)

    def logits(self, x: Value, w: Weights, spec: ModelSpec, batch: Any) -> Value:
        return self._step("logits", spec.vocab_size, x, w, spec, batch)

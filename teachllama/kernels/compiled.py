"""A model's forward pass on compiled kernels: records `forward`, writes the tables of `fields.py`, and makes the calls.

Compiled code trusts every number it is given, so all calls go through this module, which checks first.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
from bisect import bisect_left
from typing import TYPE_CHECKING

import numpy as np

from teachllama import threads
from teachllama.batch import Batch, Run
from teachllama.errors import ClosedError
from teachllama.kernels import fields, machine_code
from teachllama.kernels.fields import CHUNK, FEW, TILE_FROM, WIDTH
from teachllama.kernels.program import Instructions, address_of, lower
from teachllama.kernels.record import record
from teachllama.kernels.team import team
from teachllama.kv.pages import Pages
from teachllama.weights import F32Matrix, Linear

if TYPE_CHECKING:
    from teachllama.spec import ModelSpec, Rope
    from teachllama.weights import Weights

MAX_BATCH = 512  # tokens of one call: more would not be faster
MAX_ROPES = 64  # kinds of rotation in one model: usually two


def why_not(spec: ModelSpec) -> str | None:
    """Why a model cannot run on these kernels, as text; None if it can."""
    if sys.byteorder != "little":
        return "the kernels read GGUF's little-endian numbers as they are, and this processor is big-endian"
    sizes = [("embedding_length", spec.dim, 32)]
    for layer in spec.layers:
        a, ffn = layer.attention, layer.ffn
        sizes.append(("feed_forward_length", ffn.hidden_dim, 32))
        sizes.append(("expert_shared_feed_forward_length", ffn.shared_hidden_dim, 32))
        sizes.append(("attention.key_length", a.head_dim, 16))
        sizes.append(("attention.kv_lora_rank", a.value_dim if a.latent else 0, 32))
        sizes.append(("attention.value_length", a.value_dim, 16))
        sizes.append(("attention.head_count times value_length", a.n_heads * a.value_dim, 32))
    for name, size, unit in sizes:
        if size % unit:
            return f"{name} is {size}; the kernels need a multiple of {unit}"
    return None


class CompiledForward:
    """`forward` for one model. It holds addresses into the weights, so it also keeps the weights alive."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        self._spec, self._weights = spec, weights
        self._serve = machine_code.serve()
        self._programs = _Programs(spec, weights)
        self._hidden: _Programs | None = None
        self._workspace: Pages | None = None
        self._workspace_at = 0
        # A job and what it points at, in buffers whose addresses stay the same. All fields of JOB and ROW are int64.
        self._job = np.zeros(fields.JOB.itemsize // 8, np.int64)
        self._tokens, self._wanted = np.zeros(MAX_BATCH, np.int64), np.zeros(MAX_BATCH, np.int64)
        self._tables = np.zeros(MAX_ROPES, np.int64)
        self._rows, self._angles = (
            np.zeros((FEW, fields.ROW.itemsize // 8), np.int64),
            np.zeros((FEW, MAX_ROPES), np.int64),
        )
        self._job_at, self._tokens_at, self._wanted_at = map(address_of, (self._job, self._tokens, self._wanted))
        self._tables_at, self._rows_at, self._angles_at = map(address_of, (self._tables, self._rows, self._angles))
        self._in_use: list[np.ndarray] = []
        self._closed = False

    def __call__(self, batch: Batch) -> np.ndarray:
        """Logits of the wanted rows, float32 (m, vocab_size), as from `forward` with `NumpyOps`."""
        spec = self._spec
        logits = self._run(self._programs, batch)
        if spec.logit_scale == 1 and not spec.logit_softcap:
            return logits
        with np.errstate(over="ignore", invalid="ignore"):  # as with NumPy: sample() refuses what is not finite
            logits *= np.float32(spec.logit_scale)
            cap = np.float32(spec.logit_softcap)
            return np.tanh(logits / cap) * cap if cap else logits

    def hidden_states(self, batch: Batch) -> np.ndarray:
        """Final hidden states of the wanted rows, after the output norm, float32 (m, dim)."""
        if self._hidden is None:  # an identity matrix in place of the output matrix
            unit = Linear(F32Matrix(np.eye(self._spec.dim, dtype=np.float32)), None)
            weights = dataclasses.replace(self._weights, output=unit)
            self._hidden = _Programs(dataclasses.replace(self._spec, vocab_size=self._spec.dim), weights)
        return self._run(self._hidden, batch)

    def _run(self, programs: _Programs, batch: Batch) -> np.ndarray:
        """Runs a batch in pieces that the kernels take, and gathers the wanted rows.

        Many tokens of one session are one piece, or several. Few tokens are evaluated together with those of other
        sessions: each row of weights is then unpacked once for all of them.
        """
        # Lists: a pass over the weights drives Python from the processor's caches, and a NumPy call for a few numbers
        # then takes far longer than operations on a list.
        given = _Given(batch.tokens.tolist(), batch.positions.tolist(), batch.wanted.tolist())
        in_order = given.wanted and given.wanted[0] >= 0 and all(map(operator.lt, given.wanted, given.wanted[1:]))
        if not in_order or given.wanted[-1] >= len(given.tokens):
            raise ValueError("rows out of range")  # caller bug
        if min(given.tokens) < 0 or max(given.tokens) >= self._spec.vocab_size:
            raise ValueError("tokens out of range")  # caller bug: sessions validate first
        out = np.empty((len(given.wanted), programs.vocab_size), np.float32)
        few: list[tuple[Run, int, int]] = []  # runs, and ranges of their rows
        n_few = 0
        for run in batch.runs:
            if given.positions[run.begin] < 0 or given.positions[run.end - 1] >= run.cache.ready_to:
                raise ValueError("positions out of range")  # caller bug
            for begin in range(run.begin, run.end, MAX_BATCH):
                end = min(begin + MAX_BATCH, run.end)
                if end - begin >= TILE_FROM:
                    self._call(programs, given, [(run, begin, end)], out, is_few=False)
                    continue
                if n_few + end - begin > FEW:
                    self._call(programs, given, few, out, is_few=True)
                    few, n_few = [], 0
                few.append((run, begin, end))
                n_few += end - begin
        if few:
            self._call(programs, given, few, out, is_few=True)
        return out

    def _call(
        self, programs: _Programs, given: _Given, pieces: list[tuple[Run, int, int]], out: np.ndarray, *, is_few: bool
    ) -> None:
        """One call: writes the pieces' keys and values to their caches, and their wanted rows' logits to `out`."""
        tokens: list[int] = []
        wanted: list[int] = []  # which of the call's tokens
        places: list[int] = []  # and which rows of `out`
        for _, begin, end in pieces:  # not always adjacent: other sessions' tokens may be between them
            low, high = bisect_left(given.wanted, begin), bisect_left(given.wanted, end)
            wanted += [len(tokens) + row - begin for row in given.wanted[low:high]]
            places += range(low, high)
            tokens += given.tokens[begin:end]
        n, (run, first, _), n_threads = len(tokens), pieces[0], threads.get_num_threads()
        start, program = given.positions[first], programs.few if is_few else programs.tiles
        side_by_side = places != [] and places[-1] - places[0] == len(places) - 1
        logits = out[places[0] : places[-1] + 1] if side_by_side else np.empty((len(places), out.shape[1]), np.float32)
        crew = team(self._serve)
        with crew.turn:
            if self._closed:  # closed while this call waited: the memory is freed
                raise ClosedError("the model was closed while this evaluation waited; load it again")
            self._tokens[:n], self._wanted[: len(wanted)] = tokens, wanted
            if is_few:
                rows, chunks = self._rows_of(programs, given, pieces)
                buffers = self._reserve(program, n, chunks, 0, n_threads)
                for row in rows:
                    row[-1] = buffers[1] + 4 * program.parts_width * row[-1]
                self._rows[:n] = rows
                rows_at, angles_at, keys_at, values_at = self._rows_at, 0, 0, 0
            else:
                angles = [table.tiles(start, n, run.cache.seq_len) for table in programs.angles]
                for i, one in enumerate(angles):
                    self._tables[i] = one.ctypes.data
                buffers = self._reserve(program, n, 0, start + n, n_threads)
                rows_at, angles_at = 0, self._tables_at
                keys_at, values_at = run.cache.addresses()
            self._job[:] = (
                program.table_at, len(program.table), n, start, self._tokens_at, rows_at, keys_at, values_at,
                run.cache.seq_len, angles_at, self._wanted_at, len(wanted), logits.ctypes.data, *buffers,
            )  # fmt: skip
            crew.run(self._job_at, n_threads)
            if not is_few and self._workspace is not None:  # a prefill's is large: return the memory
                self._workspace.give_back(0, self._workspace.nbytes)
        if places and not side_by_side:
            out[places] = logits

    def _rows_of(
        self, programs: _Programs, given: _Given, pieces: list[tuple[Run, int, int]]
    ) -> tuple[list[list[int]], int]:
        """A ROW for each token, and how many chunks of attention they have together, at most.

        Each row's `parts` is the number of chunks before its own.
        """
        rows: list[list[int]] = []
        angles: list[list[int]] = []
        chunks = 0
        self._in_use = []  # keeps the tables of angles alive: one that grows for a later session is replaced
        for run, begin, end in pieces:
            cache, first = run.cache, given.positions[begin]
            keys, values = cache.addresses()
            tables = [one.reach(first + end - begin, cache.seq_len) for one in programs.angles]
            self._in_use += [table for table, _ in tables]
            for position in range(first, first + end - begin):
                angles.append([at + position * table.strides[0] for table, at in tables])
                at = self._angles_at + len(rows) * self._angles.strides[0]
                rows.append([keys, values, cache.seq_len, position, first, at, chunks])
                chunks += (position + CHUNK) // CHUNK
        self._angles[: len(rows), : len(programs.angles)] = angles
        return rows, chunks

    def _reserve(
        self, program: Instructions, n: int, chunks: int, seen: int, n_threads: int
    ) -> tuple[int, int, int, int, int]:
        """Lays out the call's buffers in the workspace, one mapping that grows when a call needs more.

        Args:
            chunks: how many chunks the attention of a few tokens takes.
            seen: how many positions tiles attend to; 0 for a few tokens.

        Returns:
            the last five fields of a job.
        """
        if seen:
            rows = -(-n // WIDTH) * WIDTH
            private, scratch = program.scratch + max(rows * program.scratch_row, (seen + WIDTH) * WIDTH), 0
        else:
            rows, scratch = n, n * program.private_width
            private = scratch + program.scratch + n * program.scratch_row
        shared, private = _aligned(4 * rows * program.shared_width), _aligned(4 * private)
        parts = shared + _aligned(4 * program.parts_width * chunks)
        total = parts + n_threads * private
        if self._workspace is None or self._workspace.closed or self._workspace.nbytes < total:
            if self._workspace is not None:
                self._workspace.close()  # an interrupt may come after this
            workspace = Pages(total + total // 4)
            self._workspace_at = workspace.array(0, (1,), np.uint8).ctypes.data
            self._workspace = workspace  # last: until then the old one is closed, so the next call reserves again
        at = self._workspace_at
        return at, at + shared, at + parts, private, 4 * scratch

    def close(self) -> None:
        """Frees the workspace. Waits for a call that is still running."""
        with team(self._serve).turn:
            self._closed = True
            if self._workspace is not None:
                self._workspace.close()


@dataclasses.dataclass(frozen=True, slots=True)
class _Given:
    """A batch's numbers, as lists."""

    tokens: list[int]
    positions: list[int]
    wanted: list[int]


class _Programs:
    """The two forms of one model's program."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        recorded = record(spec, weights)
        self.few = lower(recorded, spec, few=True)
        self.tiles = lower(recorded, spec, few=False)
        self.angles = [_Angles(rope) for rope in self.few.ropes]  # in the same order in both forms
        self.vocab_size, self._weights = spec.vocab_size, weights


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


class _Angles:
    """One kind of rotation's cosines and sines for all positions so far, (positions, 2 * pairs) float32."""

    def __init__(self, rope: Rope):
        self._rope = rope
        self._kept: dict[bool, tuple[np.ndarray, int]] = {}

    def reach(self, n: int, seq_len: int) -> tuple[np.ndarray, int]:
        """A table of at least the first n positions, and its address."""
        is_long = self._rope.at_length(seq_len)[0] is self._rope.long_frequencies
        kept = self._kept.get(is_long)
        if kept is None or len(kept[0]) < n:
            table = self._made(seq_len, 2 * n if kept is not None else n)
            kept = self._kept[is_long] = table, address_of(table)
        return kept

    def tiles(self, start: int, n: int, seq_len: int) -> np.ndarray:
        """Cosines, then sines, of n positions as tiles (2 * pairs, width)."""
        both, tiles = self.reach(start + n, seq_len)[0][start : start + n], []
        for first in range(0, n, WIDTH):
            part = both[first : first + WIDTH]
            width = WIDTH if n - first > 16 else 16
            tiles.append(np.pad(part, ((0, width - len(part)), (0, 0))).T.ravel())
        return np.concatenate(tiles)

    def _made(self, seq_len: int, n: int) -> np.ndarray:
        frequencies, magnitude = self._rope.at_length(seq_len)
        n = -(-n // 256) * 256
        angles = np.arange(n)[:, None] * np.asarray(frequencies)  # (n, pairs) float64
        return (magnitude * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)

"""Replays a program: each thread walks the same list of instructions, does its share, and waits at its barriers.

`program.py` builds the list in one of two forms: `_rows` runs the form for one token or a few, `_tiles` the form for
many. This file defines only the operations, not the layers, the order of operations, or the places of barriers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from teachllama.kernels import experts
from teachllama.kernels.attention import attend_chunk, attend_tile, join_chunks, kv_address, store_kv
from teachllama.kernels.blocks import matvec, multiply_few, row_nbytes, unpack
from teachllama.kernels.elementwise import (
    add,
    add_bias,
    copy,
    gate,
    rmsnorm,
    rmsnorm_tile,
    rope,
    rope_tile,
    scale,
    sigmoid,
)  # fmt: skip
from teachllama.kernels.fields import (
    ARRIVED,
    BLOCK,
    CHUNK,
    GENERATION,
    INSTRUCTION,
    JOB,
    JOB_AT,
    KV_HEADER,
    MAX_THREADS,
    PANEL,
    PHASE,
    ROW,
    WIDTH,
    Op,
)  # fmt: skip
from teachllama.kernels.matmul import multiply, multiply_tile, width_of
from teachllama.kernels.simd import (
    MASKED,
    atomic_add,
    atomic_load,
    atomic_store,
    f32_at,
    i64_at,
    jit,
    put_f32,
    record_at,
    yield_thread,
)  # fmt: skip

SPINS_BEFORE_YIELD = 10_000
SIZE, ROW_SIZE = INSTRUCTION.itemsize, ROW.itemsize
NONE = np.float32(MASKED)
instruction_at, job_at, row_at = record_at(INSTRUCTION), record_at(JOB), record_at(ROW)
(
    BARRIER, EMBED, NORM, LINEAR, ROPE, STORE, ATTEND, JOIN, ADD, GATE, COPY, LINEAR_HEADS, SELECT, EXPERTS_UP,
    EXPERTS_DOWN, EXPERTS, COMBINE, TIMES_SIGMOID, LOGITS,
) = (int(op) for op in Op)  # fmt: skip


@jit
def barrier(sync: int, n_threads: int) -> None:
    """Returns when all threads have called it."""
    if n_threads == 1:
        return
    phase = atomic_load(sync + 8 * PHASE)
    if atomic_add(sync + 8 * ARRIVED, 1) == n_threads - 1:
        atomic_store(sync + 8 * ARRIVED, 0)
        atomic_add(sync + 8 * PHASE, 1)
        return
    spins = 0
    while atomic_load(sync + 8 * PHASE) == phase:
        spins += 1
        if spins % SPINS_BEFORE_YIELD == 0:  # with more threads than processors: let the others run
            yield_thread()


@jit
def share(n: int, step: int, thread: int, n_threads: int) -> tuple[int, int]:
    """This thread's part of 0 to n, in whole steps except for the last."""
    steps = (n + step - 1) // step
    return min(n, steps * thread // n_threads * step), min(n, steps * (thread + 1) // n_threads * step)


@jit
def place(operand: int, shared: int, private: int, rows: int) -> int:
    """The address of an operand in a batch of `rows` rows."""
    return (private if operand & 1 else shared) + 4 * rows * (operand >> 1)


@jit
def logits_rows(i: Any, job: Any, x: int, scratch: int, thread: int, n_threads: int) -> None:
    """The last step: the wanted rows of x (n, columns) -> this thread's part of their logits."""
    step = 4 * i.columns
    for j in range(job.n_wanted):
        rmsnorm(x + step * i64_at(job.wanted + 8 * j), i.w2, i.columns, i.eps, scratch + step * j)
    begin, end = share(i.rows, 4, thread, n_threads)
    n = job.n_wanted
    multiply_few(i.kind, i.w, i.columns, scratch, step, n, job.logits, 4 * i.rows, begin, end)


@jit
def pages_of(tables: int, layer: int, seq_len: int) -> int:
    """The address of a layer's table of pages: see `attention.py`."""
    return tables + 8 * layer * (KV_HEADER + (seq_len + BLOCK - 1) // BLOCK)


@jit
def visible(position: int, window: int) -> tuple[int, int]:
    """The first position that one sees, and the beginning of its first chunk, which is the first position of a page."""
    first = max(0, position + 1 - window) if window else 0
    return first, first // BLOCK * BLOCK


@jit
def attend_rows(i: Any, job: Any, q: int, k: int, v: int, scratch: int, thread: int, n_threads: int) -> None:
    """Attention of a few tokens, split by tokens, KV heads and chunks of positions.

    The thread that attends to a chunk stores the new keys and values in it first. With several new tokens of one
    session, threads may store the same numbers in the same place; each reads only new ones that it stored itself.
    """
    group, stride, part_nbytes = i.heads // i.kv_heads, i.head_dim if i.latent else i.value_dim, 4 * (i.value_dim + 16)
    before = 0  # tasks of the tokens before this one
    for t in range(job.n_tokens):
        row = row_at(job.rows + t * ROW_SIZE)
        keys, values = pages_of(row.keys, i.layer, row.seq_len), pages_of(row.values, i.layer, row.seq_len)
        position = row.position
        first, origin = visible(position, i.window)
        chunks = (position + 1 - origin + CHUNK - 1) // CHUNK
        for task in range((thread - before) % n_threads, i.kv_heads * chunks, n_threads):
            g, c = task // chunks, task % chunks
            begin, end = max(first, origin + c * CHUNK), min(position + 1, origin + (c + 1) * CHUNK)
            for p in range(max(begin, row.first), end):
                source = (t + p - position) * i.kv_heads + g  # the new token at position p
                to = kv_address(keys, g, i.head_dim, p)
                store_kv(k + 4 * source * i.head_dim, 4, i.head_dim, to, i64_at(keys))
                if not i.latent:
                    to = kv_address(values, g, stride, p)
                    store_kv(v + 4 * source * stride, 4, stride, to, i64_at(values))
            attend_chunk(
                q + 4 * (t * i.heads + g * group) * i.head_dim, group, i.head_dim, keys, values, g, i.value_dim,
                stride, begin, end, i.scale, i.softcap, row.parts + (g * group * chunks + c) * part_nbytes,
                chunks * part_nbytes, scratch,
            )  # fmt: skip
        before += i.kv_heads * chunks


@jit
def join_rows(i: Any, job: Any, out: int) -> None:
    """Combines the chunks of every token's heads."""
    part_nbytes = 4 * (i.value_dim + 16)
    for t in range(job.n_tokens):
        row = row_at(job.rows + t * ROW_SIZE)
        _, origin = visible(row.position, i.window)
        chunks = (row.position + 1 - origin + CHUNK - 1) // CHUNK
        for h in range(i.heads):
            sink = f32_at(i.w + 4 * h) if i.w else NONE
            parts = row.parts + h * chunks * part_nbytes
            join_chunks(parts, chunks, part_nbytes, i.value_dim, sink, out + 4 * (t * i.heads + h) * i.value_dim)


@jit
def heads_rows(i: Any, n: int, x: int, out: int, thread: int, n_threads: int) -> None:
    """Multiplies each head's first numbers by its own rows of a matrix; the head's other numbers follow unchanged."""
    rows = i.rows // i.heads
    for h in range(thread, i.heads, n_threads):
        w = i.w + h * rows * row_nbytes(i.kind, i.columns)
        for t in range(n):
            head, to = x + 4 * (t * i.heads + h) * i.head_dim, out + 4 * (t * i.heads + h) * i.value_dim
            matvec(i.kind, w, i.columns, head, to, np.int64(0), rows)
            copy(head + 4 * i.columns, i.head_dim - i.columns, to + 4 * rows)


@jit
def experts_up_row(i: Any, x: int, chosen: int, out: int, thread: int, n_threads: int) -> None:
    """activation(gate) * up of all experts that one token chose, split by rows."""
    begin, end = share(i.rows, i.step, thread, n_threads)
    for j in range(i.n_used):
        first = int(f32_at(chosen + 4 * j)) * i.rows
        gates, ups = out + 4 * j * i.rows, out + 4 * (i.n_used + j) * i.rows
        matvec(i.kind, i.w + first * row_nbytes(i.kind, i.columns), i.columns, x, gates, begin, end)
        matvec(i.kind2, i.w2 + first * row_nbytes(i.kind2, i.columns), i.columns, x, ups, begin, end)
        if i.bias:
            add_bias(gates, i.bias + 4 * first, begin, end)
            add_bias(ups, i.bias2 + 4 * first, begin, end)
        gate(gates + 4 * begin, ups + 4 * begin, end - begin, i.activation, gates + 4 * begin)


@jit
def experts_down_row(i: Any, x: int, chosen: int, out: int, scratch: int, thread: int, n_threads: int) -> None:
    """The weighted sum of one token's experts, split by rows."""
    begin, end = share(i.rows, i.step, thread, n_threads)
    for r in range(begin, end):
        put_f32(out + 4 * r, np.float32(0))
    for j in range(i.n_used):
        first, weight = int(f32_at(chosen + 4 * j)) * i.rows, f32_at(chosen + 4 * (i.n_used + j))
        at = i.w3 + first * row_nbytes(i.kind3, i.columns)
        matvec(i.kind3, at, i.columns, x + 4 * j * i.columns, scratch, begin, end)
        if i.bias3:
            add_bias(scratch, i.bias3 + 4 * first, begin, end)
        for r in range(begin, end):
            put_f32(out + 4 * r, f32_at(out + 4 * r) + weight * f32_at(scratch + 4 * r))


@jit
def _rows(job: Any, sync: int, thread: int, n_threads: int) -> None:
    """One token, or a few, of one session or several: every operand is one vector per token."""
    n = job.n_tokens
    shared, private = job.shared, job.private + thread * job.private_nbytes
    scratch = private + job.scratch
    for step in range(job.n_instructions):
        i = instruction_at(job.program + step * SIZE)
        op = i.op
        x, y, out = place(i.x, shared, private, n), place(i.y, shared, private, n), place(i.out, shared, private, n)
        if op == BARRIER:
            barrier(sync, n_threads)
        elif op == LINEAR:
            begin, end = share(i.rows, i.step, thread, n_threads)
            multiply_few(i.kind, i.w, i.columns, x, 4 * i.columns, n, out, 4 * i.rows, begin, end)
            if i.bias:
                for t in range(n):
                    add_bias(out + 4 * t * i.rows, i.bias, begin, end)
        elif op == NORM:
            for h in range(n * i.heads):
                at = 4 * h * i.columns
                rmsnorm(x + at, i.w, i.columns, i.eps, out + at)
        elif op == ADD:
            add(x, y, n * i.rows, i.scale, out)
        elif op == ROPE:
            for t in range(n):
                angles = i64_at(row_at(job.rows + t * ROW_SIZE).angles + 8 * i.table)
                for h in range(t * i.heads, (t + 1) * i.heads):
                    at = 4 * h * i.head_dim
                    rope(x + at, i.head_dim, i.first, angles, i.pairs, i.neox != 0, out + at)
        elif op == ATTEND:
            attend_rows(i, job, x, y, place(i.z, shared, private, n), scratch, thread, n_threads)
        elif op == JOIN:
            join_rows(i, job, out)
        elif op == GATE:
            begin, end = share(i.rows, i.step, thread, n_threads)
            for t in range(n):
                at = 4 * (t * i.rows + begin)
                gate(x + at, y + at, end - begin, i.activation, out + at)
        elif op == EMBED:
            for t in range(n):
                unpack(i.kind, i.w, i.columns, i64_at(job.tokens + 8 * t), out + 4 * t * i.columns)
            scale(out, n * i.columns, i.scale)
        elif op == LOGITS and job.n_wanted:
            logits_rows(i, job, x, scratch, thread, n_threads)
        elif op == COPY:  # into part of a wider vector
            for t in range(n):
                copy(x + 4 * t * i.rows, i.rows, out + 4 * (t * i.columns + i.first))
        elif op == LINEAR_HEADS:
            heads_rows(i, n, x, out, thread, n_threads)
        elif op == SELECT:
            for t in range(n):
                experts.select(
                    x + 4 * t * i.n_experts, i.n_experts, i.n_used, i.scores, i.normalize != 0, i.scale, i.bias,
                    i.n_groups, i.n_groups_used, out + 8 * t * i.n_used, scratch,
                )  # fmt: skip
        elif op == EXPERTS_UP:
            chosen = place(i.z, shared, private, n)
            for t in range(n):
                to = out + 8 * t * i.n_used * i.rows
                experts_up_row(i, x + 4 * t * i.columns, chosen + 8 * t * i.n_used, to, thread, n_threads)
        elif op == EXPERTS_DOWN:
            chosen = place(i.z, shared, private, n)
            for t in range(n):
                source, to = x + 8 * t * i.n_used * i.columns, out + 4 * t * i.rows
                experts_down_row(i, source, chosen + 8 * t * i.n_used, to, scratch, thread, n_threads)
        elif op == TIMES_SIGMOID:
            for t in range(n):
                scale_to(x + 4 * t * i.rows, i.rows, sigmoid(f32_at(y + 4 * t)), out + 4 * t * i.rows)


@jit
def scale_to(x: int, n: int, by: float, out: int) -> None:
    """out = by * x."""
    copy(x, n, out)
    scale(out, n, by)


@jit
def embed_tiles(i: Any, job: Any, out: int, scratch: int, thread: int, n_threads: int) -> None:
    """Rows of the embedding as columns of tiles; lanes past the end repeat the last token."""
    n = job.n_tokens
    for t in range(thread, (n + WIDTH - 1) // WIDTH, n_threads):
        width, to = width_of(t, n), out + 4 * WIDTH * t * i.columns
        for lane in range(width):
            unpack(i.kind, i.w, i.columns, i64_at(job.tokens + 8 * min(n - 1, WIDTH * t + lane)), scratch)
            for d in range(i.columns):
                put_f32(to + 4 * (d * width + lane), f32_at(scratch + 4 * d))
        scale(to, i.columns * width, i.scale)


@jit
def store_tiles(i: Any, job: Any, x: int, thread: int, n_threads: int) -> None:
    """Stores keys, or values if `latent` is set, in the cache."""
    n, table = job.n_tokens, pages_of(job.values if i.latent else job.keys, i.layer, job.seq_len)
    tiles = (n + WIDTH - 1) // WIDTH
    for task in range(thread, tiles * i.heads, n_threads):
        t, g = task // i.heads, task % i.heads
        width = width_of(t, n)
        at = x + 4 * (WIDTH * t * i.heads + g * width) * i.head_dim
        for lane in range(min(width, n - WIDTH * t)):
            to = kv_address(table, g, i.head_dim, job.start + WIDTH * t + lane)
            store_kv(at + 4 * lane, 4 * width, i.head_dim, to, i64_at(table))


@jit
def attend_tiles(i: Any, job: Any, x: int, out: int, scratch: int, thread: int, n_threads: int) -> None:
    """Attention, split by tiles and query heads."""
    n, group, stride = job.n_tokens, i.heads // i.kv_heads, i.head_dim if i.latent else i.value_dim
    keys, values = pages_of(job.keys, i.layer, job.seq_len), pages_of(job.values, i.layer, job.seq_len)
    for task in range(thread, (n + WIDTH - 1) // WIDTH * i.heads, n_threads):
        t, h = task // i.heads, task % i.heads
        width = width_of(t, n)
        own = job.start + WIDTH * t  # the position of the tile's first token
        first, _ = visible(own, i.window)
        attend_tile(
            x + 4 * (WIDTH * t * i.heads + h * width) * i.head_dim, i.head_dim, keys, values, h // group,
            i.value_dim, stride, first, min(job.start + n, own + width), own, i.window, i.scale, i.softcap,
            f32_at(i.w + 4 * h) if i.w else NONE, out + 4 * (WIDTH * t * i.heads + h * width) * i.value_dim, width,
            scratch,
        )  # fmt: skip


@jit
def heads_tiles(i: Any, n: int, x: int, out: int, scratch: int, thread: int, n_threads: int) -> None:
    """As `heads_rows`, for tiles; split by heads."""
    rows = i.rows // i.heads
    kept = i.head_dim - i.columns
    for h in range(thread, i.heads, n_threads):
        at = i.w + h * rows * row_nbytes(i.kind, i.columns)
        multiply(
            i.kind, at, i.columns, np.int64(0), rows, x, i.heads * i.head_dim, h * i.head_dim, n, out,
            i.heads * i.value_dim, h * i.value_dim, i.heads < 0, np.int64(0), scratch,
        )  # fmt: skip
        for t in range((n + WIDTH - 1) // WIDTH):
            width = width_of(t, n)
            source = x + 4 * (WIDTH * t * i.heads * i.head_dim + (h * i.head_dim + i.columns) * width)
            to = out + 4 * (WIDTH * t * i.heads * i.value_dim + (h * i.value_dim + rows) * width)
            copy(source, kept * width, to)


@jit
def select_tiles(i: Any, n: int, x: int, out: int, scratch: int, thread: int, n_threads: int) -> None:
    """`experts.select` for each token."""
    for t in range(thread, (n + WIDTH - 1) // WIDTH, n_threads):
        width = width_of(t, n)
        for lane in range(min(width, n - WIDTH * t)):
            tile = x + 4 * (WIDTH * t * i.n_experts + lane)
            for e in range(i.n_experts):
                put_f32(scratch + 4 * e, f32_at(tile + 4 * e * width))
            experts.select(
                scratch, i.n_experts, i.n_used, i.scores, i.normalize != 0, i.scale, i.bias, i.n_groups,
                i.n_groups_used, out + 8 * i.n_used * (WIDTH * t + lane), scratch + 4 * i.n_experts,
            )  # fmt: skip


@jit
def times_sigmoid_tile(x: int, rows: int, gates: int, width: int, out: int) -> None:
    """x (rows, width) times the sigmoid of each token's own number, gates (width,)."""
    for lane in range(width):
        factor = sigmoid(f32_at(gates + 4 * lane))
        for r in range(rows):
            put_f32(out + 4 * (r * width + lane), f32_at(x + 4 * (r * width + lane)) * factor)


@jit
def logits_tiles(i: Any, job: Any, sync: int, x: int, h: int, scratch: int, thread: int, n_threads: int) -> None:
    """Logits of the wanted rows: one row as a vector; several as tiles of their own, gathered from x into h."""
    n, m, dim = job.n_tokens, job.n_wanted, i.columns
    if m == 1:
        row = i64_at(job.wanted)
        width, tile = width_of(row // WIDTH, n), x + 4 * WIDTH * (row // WIDTH) * dim
        for d in range(dim):
            put_f32(scratch + 4 * d, f32_at(tile + 4 * (d * width + row % WIDTH)))
        rmsnorm(scratch, i.w2, dim, i.eps, scratch)
        begin, end = share(i.rows, 4, thread, n_threads)
        matvec(i.kind, i.w, dim, scratch, job.logits, begin, end)
        return
    if m == 0:
        return
    tiles = (m + WIDTH - 1) // WIDTH
    for t in range(thread, tiles, n_threads):
        width, to = width_of(t, m), h + 4 * WIDTH * t * dim
        for lane in range(width):
            row = i64_at(job.wanted + 8 * min(m - 1, WIDTH * t + lane))
            stride, tile = width_of(row // WIDTH, n), x + 4 * WIDTH * (row // WIDTH) * dim
            for d in range(dim):
                put_f32(to + 4 * (d * width + lane), f32_at(tile + 4 * (d * stride + row % WIDTH)))
        rmsnorm_tile(to, i.w2, dim, i.eps, to, width)
    barrier(sync, n_threads)
    # A panel of the vocabulary at a time, transposed so that each token's logits are contiguous.
    begin, end = share(i.rows, PANEL, thread, n_threads)
    turned = scratch + 4 * PANEL * dim
    for first in range(begin, end, PANEL):
        rows = min(PANEL, end - first)
        for r in range(rows):
            unpack(i.kind, i.w, dim, first + r, scratch + 4 * r * dim)
        for t in range(tiles):
            width = width_of(t, m)
            multiply_tile(scratch, 4 * dim, 4, rows, h + 4 * WIDTH * t * dim, dim, turned, False, width)
            for lane in range(min(width, m - WIDTH * t)):
                to = job.logits + 4 * ((WIDTH * t + lane) * i.rows + first)
                for r in range(rows):
                    put_f32(to + 4 * r, f32_at(turned + 4 * (r * width + lane)))


@jit
def _tiles(job: Any, sync: int, thread: int, n_threads: int) -> None:
    """Many tokens: every operand is a row of tiles, (rows, width) each."""
    n = job.n_tokens
    tiles, padded = (n + WIDTH - 1) // WIDTH, (n + WIDTH - 1) // WIDTH * WIDTH
    shared, scratch = job.shared, job.private + thread * job.private_nbytes
    for step in range(job.n_instructions):
        i = instruction_at(job.program + step * SIZE)
        op = i.op
        x, y, out = place(i.x, shared, 0, padded), place(i.y, shared, 0, padded), place(i.out, shared, 0, padded)
        z = place(i.z, shared, 0, padded)
        if op == BARRIER:
            barrier(sync, n_threads)
        elif op == LINEAR:
            begin, end = share(i.rows, i.step, thread, n_threads)
            multiply(
                i.kind,
                i.w,
                i.columns,
                begin,
                end,
                x,
                i.columns,
                np.int64(0),
                n,
                out,
                i.rows,
                np.int64(0),
                i.add != 0,
                i.bias,
                scratch,
            )
        elif op == NORM:
            for task in range(thread, tiles * i.heads, n_threads):
                t, h = task // i.heads, task % i.heads
                at = 4 * (WIDTH * t * i.rows + h * i.columns * width_of(t, n))
                rmsnorm_tile(x + at, i.w, i.columns, i.eps, out + at, width_of(t, n))
        elif op == ADD:
            for t in range(thread, tiles, n_threads):
                at = 4 * WIDTH * t * i.rows
                add(x + at, y + at, i.rows * width_of(t, n), i.scale, out + at)
        elif op == ROPE:
            angles = i64_at(job.angles + 8 * i.table)
            for task in range(thread, tiles * i.heads, n_threads):
                t, h = task // i.heads, task % i.heads
                width = width_of(t, n)
                at = 4 * (WIDTH * t * i.heads + h * width) * i.head_dim
                turn = angles + 4 * WIDTH * t * 2 * i.pairs
                rope_tile(x + at, i.head_dim, i.first, turn, i.pairs, i.neox != 0, out + at, width)
        elif op == STORE:
            store_tiles(i, job, x, thread, n_threads)
        elif op == ATTEND:
            attend_tiles(i, job, x, out, scratch, thread, n_threads)
        elif op == GATE:
            begin, end = share(i.rows, i.step, thread, n_threads)
            for t in range(tiles):
                width = width_of(t, n)
                at = 4 * (WIDTH * t * i.rows + begin * width)
                gate(x + at, y + at, (end - begin) * width, i.activation, out + at)
        elif op == EMBED:
            embed_tiles(i, job, out, scratch, thread, n_threads)
        elif op == LOGITS:
            logits_tiles(i, job, sync, x, out, scratch, thread, n_threads)
        elif op == COPY:
            for t in range(thread, tiles, n_threads):
                width = width_of(t, n)
                to = out + 4 * (WIDTH * t * i.columns + i.first * width)
                copy(x + 4 * WIDTH * t * i.rows, i.rows * width, to)
        elif op == LINEAR_HEADS:
            heads_tiles(i, n, x, out, scratch, thread, n_threads)
        elif op == SELECT:
            select_tiles(i, n, x, out, scratch, thread, n_threads)
        elif op == EXPERTS:
            room = scratch + 4 * PANEL * max(i.rows, i.columns)
            for e in range(thread, i.n_experts, n_threads):
                experts.visit(
                    e, n, i.columns, i.rows, i.n_used, i.activation, x, z, i.kind, i.w, i.bias, i.kind2, i.w2, i.bias2,
                    i.kind3, i.w3, i.bias3, out, scratch, room,
                )  # fmt: skip
        elif op == COMBINE:
            for t in range(thread, tiles, n_threads):
                experts.combine(x, z, i.n_used, i.rows, t, n, out + 4 * WIDTH * t * i.rows)
        elif op == TIMES_SIGMOID:
            for t in range(thread, tiles, n_threads):
                at, width = 4 * WIDTH * t * i.rows, width_of(t, n)
                times_sigmoid_tile(x + at, i.rows, y + 4 * WIDTH * t, width, out + at)


@jit
def work(sync: int, thread: int, n_threads: int) -> None:
    """Runs one thread's part of the job."""
    job = job_at(i64_at(sync + 8 * JOB_AT))
    if job.rows:
        _rows(job, sync, thread, n_threads)
    else:
        _tiles(job, sync, thread, n_threads)


@jit
def serve(sync: int, thread: int, seen: int, patience: int) -> int:
    """The function that each thread runs. A generation combines a counter and the number of threads of its job.

    Thread 0 starts a job for `seen` threads and returns when it is done. The others run their part of every new job,
    and return the last generation they saw when they have polled `patience` times without finding a new one.
    """
    leads = thread == 0
    if leads:
        n_threads = seen
        count = atomic_load(sync + 8 * GENERATION) // MAX_THREADS + 1
        atomic_store(sync + 8 * GENERATION, count * MAX_THREADS + n_threads)
        seen = 0
    waited = 0
    while waited <= patience:
        generation = atomic_load(sync + 8 * GENERATION)
        if generation == seen:
            waited += 1
            continue
        seen, waited = generation, 0
        if thread < generation % MAX_THREADS:
            work(sync, thread, generation % MAX_THREADS)
        if leads:
            break
    return seen

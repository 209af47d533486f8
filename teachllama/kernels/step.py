"""The forward pass compiled: `model.forward` over again, for speed, and tested equal to it.

What is different from the page in `model.py`:

- Several threads run it side by side, each on its share of every matrix's rows, and meet at barriers.
- One token (decode) is a vector. Every thread keeps the residual stream for itself and repeats the small steps, so that
  a layer has five barriers. Query, key and value rows are one stage, as are gate and up rows with their activation.
- Many tokens (prefill) are tiles of 32 (`matmul.py`); residual additions happen inside the matrix products.
- Weights are multiplied as the blocks they are in the file (`blocks.py`).

Everything is reached through addresses in two tables of int64, the plan of a model and the job of one call, which
`compiled.py` writes after it has checked all of it.
"""

from __future__ import annotations

from teachllama.kernels.attention import attend_chunk, attend_tile, join_chunks, remember
from teachllama.kernels.blocks import dots, unpack
from teachllama.kernels.elementwise import (
    add,
    gate,
    group_sums,
    rmsnorm,
    rmsnorm_tile,
    rope,
    rope_tile,
    scale,
)  # fmt: skip
from teachllama.kernels.layout import (
    ALL_LOGITS,
    ANGLES,
    ANGLES_LOCAL,
    ARRIVED,
    ATTENTION_SCALE,
    ATTN_NORM,
    CHUNK,
    DIM,
    DOWN,
    DOWN_TYPE,
    EMBEDDING,
    EMBEDDING_SCALE,
    EMBEDDING_TYPE,
    EPS,
    FFN_NORM,
    GATE,
    GATE_TYPE,
    GATES,
    GELU,
    GENERATION,
    HALF,
    HEAD_DIM,
    HEADS,
    HIDDEN_DIM,
    JOB_AT,
    K_NORM,
    K_TYPE,
    KEYS,
    KV_HEADS,
    LOCAL_ANGLES,
    LOGITS,
    MIXED,
    MOST_THREADS,
    N_LAYER,
    N_LAYERS,
    N_PLAN,
    N_TOKENS,
    O_TYPE,
    OUTPUT,
    OUTPUT_NORM,
    OUTPUT_TYPE,
    PANEL,
    PHASE,
    PLAN_AT,
    POST_ATTENTION_NORM,
    POST_FFW_NORM,
    POST_NORMS,
    PRIVATE,
    PRIVATE_NBYTES,
    Q_NORM,
    Q_TYPE,
    QK_NORM,
    QKV,
    ROPE_HALVES,
    ROPE_PAIRS,
    SEQ_LEN,
    START,
    TOKENS,
    UP,
    UP_TYPE,
    V_TYPE,
    VALUE_DIM,
    VALUES,
    VOCAB,
    WIDTH,
    WINDOW,
    H,
    K,
    O,
    Q,
    V,
    X,
)  # fmt: skip
from teachllama.kernels.matmul import multiply, multiply_tile, width_of
from teachllama.kernels.simd import (
    add_at,
    f32_at,
    i64_at,
    jit,
    let_others_run,
    put_f32,
    see_at,
    set_at,
)  # fmt: skip

SPINS_BEFORE_YIELD = 10_000


@jit
def barrier(sync: int, n_threads: int) -> None:
    """Returns when all threads have called it."""
    if n_threads == 1:
        return
    phase = see_at(sync + 8 * PHASE)
    if add_at(sync + 8 * ARRIVED, 1) == n_threads - 1:
        set_at(sync + 8 * ARRIVED, 0)
        add_at(sync + 8 * PHASE, 1)
        return
    spins = 0
    while see_at(sync + 8 * PHASE) == phase:
        spins += 1
        if spins % SPINS_BEFORE_YIELD == 0:  # more threads than processors: let the others come here too
            let_others_run()


@jit
def share(n: int, step: int, thread: int, n_threads: int) -> tuple[int, int]:
    """This thread's part of 0 to n, in whole steps but for the last."""
    steps = (n + step - 1) // step
    return min(n, steps * thread // n_threads * step), min(n, steps * (thread + 1) // n_threads * step)


@jit
def decode(plan: int, job: int, sync: int, thread: int, n_threads: int) -> None:
    """One token."""
    n_layers, dim, hidden = i64_at(plan + 8 * N_LAYERS), i64_at(plan + 8 * DIM), i64_at(plan + 8 * HIDDEN_DIM)
    heads, kv_heads = i64_at(plan + 8 * HEADS), i64_at(plan + 8 * KV_HEADS)
    head_dim, value_dim = i64_at(plan + 8 * HEAD_DIM), i64_at(plan + 8 * VALUE_DIM)
    gelu, qk_norm, post_norms = i64_at(plan + 8 * GELU), i64_at(plan + 8 * QK_NORM), i64_at(plan + 8 * POST_NORMS)
    pairs, halves, eps = i64_at(plan + 8 * ROPE_PAIRS), i64_at(plan + 8 * ROPE_HALVES) != 0, f32_at(plan + 8 * EPS)
    factor, group = f32_at(plan + 8 * ATTENTION_SCALE), heads // kv_heads
    q_rows, k_rows, v_rows = heads * head_dim, kv_heads * head_dim, kv_heads * value_dim
    mixed_rows = heads * value_dim

    position, seq_len, half = i64_at(job + 8 * START), i64_at(job + 8 * SEQ_LEN), i64_at(job + 8 * HALF) != 0
    size = 2 if half else 4
    # shared: read by all after a barrier
    qkv, gates, out, parts = (
        i64_at(job + 8 * QKV), i64_at(job + 8 * GATES), i64_at(job + 8 * H), i64_at(job + 8 * MIXED)
    )  # fmt: skip
    # this thread's own
    x = i64_at(job + 8 * PRIVATE) + thread * i64_at(job + 8 * PRIVATE_NBYTES)
    h = x + 4 * dim
    q = h + 4 * dim
    k = q + 4 * q_rows
    mixed = k + 4 * head_dim
    sums = mixed + 4 * mixed_rows
    scratch = sums + 4 * max(dim, max(hidden, mixed_rows))

    token = i64_at(i64_at(job + 8 * TOKENS))
    unpack(i64_at(plan + 8 * EMBEDDING_TYPE), i64_at(plan + 8 * EMBEDDING), dim, token, x)
    scale(x, dim, f32_at(plan + 8 * EMBEDDING_SCALE))
    for i in range(n_layers):
        layer = plan + 8 * (N_PLAN + i * N_LAYER)

        # Attention.
        rmsnorm(x, i64_at(layer + 8 * ATTN_NORM), dim, eps, h)
        group_sums(h, dim, sums)
        begin, end = share(q_rows, 4, thread, n_threads)
        dots(i64_at(layer + 8 * Q_TYPE), i64_at(layer + 8 * Q), dim, h, sums, qkv, begin, end)
        begin, end = share(k_rows, 4, thread, n_threads)
        dots(i64_at(layer + 8 * K_TYPE), i64_at(layer + 8 * K), dim, h, sums, qkv + 4 * q_rows, begin, end)
        begin, end = share(v_rows, 4, thread, n_threads)
        dots(i64_at(layer + 8 * V_TYPE), i64_at(layer + 8 * V), dim, h, sums, qkv + 4 * (q_rows + k_rows), begin, end)
        barrier(sync, n_threads)

        window = i64_at(layer + 8 * WINDOW)
        first = max(0, position + 1 - window) if window else 0
        angles = i64_at(job + 8 * (ANGLES_LOCAL if i64_at(layer + 8 * LOCAL_ANGLES) else ANGLES))
        for j in range(heads):
            to = q + 4 * j * head_dim
            if qk_norm:
                rmsnorm(qkv + 4 * j * head_dim, i64_at(layer + 8 * Q_NORM), head_dim, eps, to)
            else:
                for m in range(head_dim):
                    put_f32(to + 4 * m, f32_at(qkv + 4 * (j * head_dim + m)))
            rope(to, angles, pairs, halves)
        chunks = (position + 1 - first + CHUNK - 1) // CHUNK
        part_nbytes = 4 * (value_dim + 16)
        for task in range(thread, kv_heads * chunks, n_threads):
            g, c = task // chunks, task % chunks
            place = (i * kv_heads + g) * seq_len
            keys = i64_at(job + 8 * KEYS) + size * place * head_dim
            values = i64_at(job + 8 * VALUES) + size * place * value_dim
            if c == chunks - 1:  # whoever attends to this token's own position remembers it first
                at = qkv + 4 * (q_rows + g * head_dim)
                if qk_norm:
                    rmsnorm(at, i64_at(layer + 8 * K_NORM), head_dim, eps, k)
                else:
                    for m in range(head_dim):
                        put_f32(k + 4 * m, f32_at(at + 4 * m))
                rope(k, angles, pairs, halves)
                remember(k, 4, head_dim, keys + size * position * head_dim, half)
                at = qkv + 4 * (q_rows + k_rows + g * value_dim)
                remember(at, 4, value_dim, values + size * position * value_dim, half)
            at_position = first + c * CHUNK
            attend_chunk(
                q + 4 * g * group * head_dim, group, head_dim, keys + size * at_position * head_dim,
                values + size * at_position * value_dim, value_dim, min(CHUNK, position + 1 - at_position), half,
                factor, parts + (g * group * chunks + c) * part_nbytes, chunks * part_nbytes, scratch,
            )  # fmt: skip
        barrier(sync, n_threads)

        for j in range(heads):
            join_chunks(parts + j * chunks * part_nbytes, chunks, part_nbytes, value_dim, mixed + 4 * j * value_dim)
        group_sums(mixed, mixed_rows, sums)
        begin, end = share(dim, 4, thread, n_threads)
        dots(i64_at(layer + 8 * O_TYPE), i64_at(layer + 8 * O), mixed_rows, mixed, sums, out, begin, end)
        barrier(sync, n_threads)
        if post_norms:
            rmsnorm(out, i64_at(layer + 8 * POST_ATTENTION_NORM), dim, eps, h)
            add(x, h, dim)
        else:
            add(x, out, dim)

        # The feed-forward network.
        rmsnorm(x, i64_at(layer + 8 * FFN_NORM), dim, eps, h)
        group_sums(h, dim, sums)
        begin, end = share(hidden, 16, thread, n_threads)
        ups = gates + 4 * hidden
        dots(i64_at(layer + 8 * GATE_TYPE), i64_at(layer + 8 * GATE), dim, h, sums, gates, begin, end)
        dots(i64_at(layer + 8 * UP_TYPE), i64_at(layer + 8 * UP), dim, h, sums, ups, begin, end)
        gate(gates + 4 * begin, ups + 4 * begin, end - begin, gelu != 0, gates + 4 * begin)
        barrier(sync, n_threads)
        group_sums(gates, hidden, sums)
        begin, end = share(dim, 4, thread, n_threads)
        dots(i64_at(layer + 8 * DOWN_TYPE), i64_at(layer + 8 * DOWN), hidden, gates, sums, out, begin, end)
        barrier(sync, n_threads)
        if post_norms:
            rmsnorm(out, i64_at(layer + 8 * POST_FFW_NORM), dim, eps, h)
            add(x, h, dim)
        else:
            add(x, out, dim)

    rmsnorm(x, i64_at(plan + 8 * OUTPUT_NORM), dim, eps, h)
    group_sums(h, dim, sums)
    vocab = i64_at(plan + 8 * VOCAB)
    begin, end = share(vocab, 4, thread, n_threads)
    to = i64_at(job + 8 * LOGITS)
    dots(i64_at(plan + 8 * OUTPUT_TYPE), i64_at(plan + 8 * OUTPUT), dim, h, sums, to, begin, end)
    barrier(sync, n_threads)


@jit
def prefill(plan: int, job: int, sync: int, thread: int, n_threads: int) -> None:
    """Many tokens, in tiles."""
    n_layers, dim, hidden = i64_at(plan + 8 * N_LAYERS), i64_at(plan + 8 * DIM), i64_at(plan + 8 * HIDDEN_DIM)
    heads, kv_heads = i64_at(plan + 8 * HEADS), i64_at(plan + 8 * KV_HEADS)
    head_dim, value_dim = i64_at(plan + 8 * HEAD_DIM), i64_at(plan + 8 * VALUE_DIM)
    gelu, qk_norm, post_norms = i64_at(plan + 8 * GELU), i64_at(plan + 8 * QK_NORM), i64_at(plan + 8 * POST_NORMS)
    pairs, halves, eps = i64_at(plan + 8 * ROPE_PAIRS), i64_at(plan + 8 * ROPE_HALVES) != 0, f32_at(plan + 8 * EPS)
    factor, group = f32_at(plan + 8 * ATTENTION_SCALE), heads // kv_heads
    q_rows, k_rows, v_rows = heads * head_dim, kv_heads * head_dim, kv_heads * value_dim
    qkv_rows, mixed_rows = q_rows + k_rows + v_rows, heads * value_dim

    n, start, seq_len = i64_at(job + 8 * N_TOKENS), i64_at(job + 8 * START), i64_at(job + 8 * SEQ_LEN)
    half = i64_at(job + 8 * HALF) != 0
    size = 2 if half else 4
    x, h, qkv = i64_at(job + 8 * X), i64_at(job + 8 * H), i64_at(job + 8 * QKV)
    mixed, gates = i64_at(job + 8 * MIXED), i64_at(job + 8 * GATES)
    scratch = i64_at(job + 8 * PRIVATE) + thread * i64_at(job + 8 * PRIVATE_NBYTES)
    tiles, keep = (n + WIDTH - 1) // WIDTH, post_norms == 0

    tokens = i64_at(job + 8 * TOKENS)
    for t in range(thread, tiles, n_threads):
        width, to = width_of(t, n), x + 4 * WIDTH * t * dim
        for lane in range(width):
            token = i64_at(tokens + 8 * min(n - 1, WIDTH * t + lane))  # lanes past the end repeat the last token
            unpack(i64_at(plan + 8 * EMBEDDING_TYPE), i64_at(plan + 8 * EMBEDDING), dim, token, scratch)
            for d in range(dim):
                put_f32(to + 4 * (d * width + lane), f32_at(scratch + 4 * d))
        scale(to, dim * width, f32_at(plan + 8 * EMBEDDING_SCALE))
    for i in range(n_layers):
        layer = plan + 8 * (N_PLAN + i * N_LAYER)

        # Attention. A thread that normalizes a tile was the one that last wrote it: no barrier before.
        barrier(sync, n_threads)
        for t in range(thread, tiles, n_threads):
            at = 4 * WIDTH * t * dim
            rmsnorm_tile(x + at, i64_at(layer + 8 * ATTN_NORM), dim, eps, h + at, width_of(t, n))
        barrier(sync, n_threads)
        begin, end = share(q_rows, PANEL, thread, n_threads)
        multiply(
            i64_at(layer + 8 * Q_TYPE), i64_at(layer + 8 * Q), dim, begin, end, h, n, qkv, qkv_rows, 0, False, scratch
        )
        begin, end = share(k_rows, 8, thread, n_threads)
        multiply(
            i64_at(layer + 8 * K_TYPE), i64_at(layer + 8 * K), dim, begin, end, h, n, qkv, qkv_rows, q_rows, False,
            scratch,
        )  # fmt: skip
        begin, end = share(v_rows, 8, thread, n_threads)
        multiply(
            i64_at(layer + 8 * V_TYPE), i64_at(layer + 8 * V), dim, begin, end, h, n, qkv, qkv_rows, q_rows + k_rows,
            False, scratch,
        )  # fmt: skip
        barrier(sync, n_threads)

        angles = i64_at(job + 8 * (ANGLES_LOCAL if i64_at(layer + 8 * LOCAL_ANGLES) else ANGLES))
        for task in range(thread, tiles * (heads + 2 * kv_heads), n_threads):
            t, j = task // (heads + 2 * kv_heads), task % (heads + 2 * kv_heads)
            width = width_of(t, n)
            tile = qkv + 4 * WIDTH * t * qkv_rows
            if j < heads + kv_heads:
                at = tile + 4 * j * head_dim * width
                if qk_norm:
                    norm = i64_at(layer + 8 * (Q_NORM if j < heads else K_NORM))
                    rmsnorm_tile(at, norm, head_dim, eps, at, width)
                rope_tile(at, angles + 4 * WIDTH * t * 2 * pairs, pairs, halves, width)
            if j >= heads:
                is_key = j < heads + kv_heads
                g = j - heads if is_key else j - heads - kv_heads
                length = head_dim if is_key else value_dim
                at = tile + 4 * width * ((q_rows + g * head_dim) if is_key else (q_rows + k_rows + g * value_dim))
                cache = i64_at(job + 8 * (KEYS if is_key else VALUES))
                to = cache + size * length * ((i * kv_heads + g) * seq_len + start + WIDTH * t)
                for lane in range(min(width, n - WIDTH * t)):
                    remember(at + 4 * lane, 4 * width, length, to + size * length * lane, half)
        barrier(sync, n_threads)

        window = i64_at(layer + 8 * WINDOW)
        for task in range(thread, tiles * heads, n_threads):
            t, j = task // heads, task % heads
            width, g = width_of(t, n), j // group
            own = start + WIDTH * t  # the position of the tile's first token
            first = max(0, own + 1 - window) if window else 0
            end = min(start + n, own + width)
            place = (i * kv_heads + g) * seq_len + first
            attend_tile(
                qkv + 4 * (WIDTH * t * qkv_rows + j * head_dim * width), head_dim,
                i64_at(job + 8 * KEYS) + size * place * head_dim, i64_at(job + 8 * VALUES) + size * place * value_dim,
                value_dim, end - first, own - first, window, half, factor,
                mixed + 4 * (WIDTH * t * mixed_rows + j * value_dim * width), width, scratch,
            )  # fmt: skip
        barrier(sync, n_threads)

        begin, end = share(dim, 8, thread, n_threads)
        to = x if keep else h  # without a second norm the product is added to the residual stream as it is made
        multiply(
            i64_at(layer + 8 * O_TYPE), i64_at(layer + 8 * O), mixed_rows, begin, end, mixed, n, to, dim, 0, keep,
            scratch,
        )  # fmt: skip
        barrier(sync, n_threads)

        # The feed-forward network.
        for t in range(thread, tiles, n_threads):
            at, width = 4 * WIDTH * t * dim, width_of(t, n)
            if not keep:
                rmsnorm_tile(h + at, i64_at(layer + 8 * POST_ATTENTION_NORM), dim, eps, h + at, width)
                add(x + at, h + at, dim * width)
            rmsnorm_tile(x + at, i64_at(layer + 8 * FFN_NORM), dim, eps, h + at, width)
        barrier(sync, n_threads)
        begin, end = share(hidden, 16, thread, n_threads)
        ups = gates + 4 * hidden * WIDTH * tiles
        multiply(
            i64_at(layer + 8 * GATE_TYPE), i64_at(layer + 8 * GATE), dim, begin, end, h, n, gates, hidden, 0, False,
            scratch,
        )  # fmt: skip
        multiply(
            i64_at(layer + 8 * UP_TYPE), i64_at(layer + 8 * UP), dim, begin, end, h, n, ups, hidden, 0, False, scratch
        )
        for t in range(tiles):
            width = width_of(t, n)
            at = 4 * (WIDTH * t * hidden + begin * width)
            gate(gates + at, ups + at, (end - begin) * width, gelu != 0, gates + at)
        barrier(sync, n_threads)
        begin, end = share(dim, 8, thread, n_threads)
        multiply(
            i64_at(layer + 8 * DOWN_TYPE), i64_at(layer + 8 * DOWN), hidden, begin, end, gates, n, to, dim, 0, keep,
            scratch,
        )  # fmt: skip
        if not keep:
            barrier(sync, n_threads)
            for t in range(thread, tiles, n_threads):
                at, width = 4 * WIDTH * t * dim, width_of(t, n)
                rmsnorm_tile(h + at, i64_at(layer + 8 * POST_FFW_NORM), dim, eps, h + at, width)
                add(x + at, h + at, dim * width)

    barrier(sync, n_threads)
    kind, matrix, vocab = i64_at(plan + 8 * OUTPUT_TYPE), i64_at(plan + 8 * OUTPUT), i64_at(plan + 8 * VOCAB)
    norm, logits = i64_at(plan + 8 * OUTPUT_NORM), i64_at(job + 8 * LOGITS)
    if i64_at(job + 8 * ALL_LOGITS):
        for t in range(thread, tiles, n_threads):
            at = 4 * WIDTH * t * dim
            rmsnorm_tile(x + at, norm, dim, eps, h + at, width_of(t, n))
        barrier(sync, n_threads)
        # A panel of the vocabulary at a time, turned so that each token's logits lie side by side.
        begin, end = share(vocab, PANEL, thread, n_threads)
        tile_of_logits = scratch + 4 * PANEL * dim
        for first in range(begin, end, PANEL):
            rows = min(PANEL, end - first)
            for r in range(rows):
                unpack(kind, matrix, dim, first + r, scratch + 4 * r * dim)
            for t in range(tiles):
                width, at = width_of(t, n), h + 4 * WIDTH * t * dim
                multiply_tile(scratch, 4 * dim, 4, rows, at, dim, tile_of_logits, False, width)
                for lane in range(min(width, n - WIDTH * t)):
                    to = logits + 4 * ((WIDTH * t + lane) * vocab + first)
                    for r in range(rows):
                        put_f32(to + 4 * r, f32_at(tile_of_logits + 4 * (r * width + lane)))
        barrier(sync, n_threads)
        return
    # Only the last token's: the vocabulary product is the largest of all.
    last = n - 1
    width, tile = width_of(last // WIDTH, n), x + 4 * WIDTH * (last // WIDTH) * dim
    hidden_state, sums = scratch, scratch + 4 * dim
    for d in range(dim):
        put_f32(hidden_state + 4 * d, f32_at(tile + 4 * (d * width + last % WIDTH)))
    rmsnorm(hidden_state, norm, dim, eps, hidden_state)
    group_sums(hidden_state, dim, sums)
    begin, end = share(vocab, 4, thread, n_threads)
    dots(kind, matrix, dim, hidden_state, sums, logits, begin, end)
    barrier(sync, n_threads)


@jit
def work(sync: int, thread: int, n_threads: int) -> None:
    """One thread's part of the job."""
    plan, job = i64_at(sync + 8 * PLAN_AT), i64_at(sync + 8 * JOB_AT)
    if i64_at(job + 8 * N_TOKENS) == 1:
        decode(plan, job, sync, thread, n_threads)
    else:
        prefill(plan, job, sync, thread, n_threads)


@jit
def serve(sync: int, thread: int, seen: int, patience: int) -> int:
    """What each thread runs. A generation is a counter and the number of threads its job is for.

    Thread 0 starts a job for `seen` threads and returns when it is done. The others run their part of every job that
    comes and return the last generation they saw, when none came for `patience` looks.
    """
    leads = thread == 0
    if leads:
        n_threads = seen
        set_at(sync + 8 * GENERATION, (see_at(sync + 8 * GENERATION) // MOST_THREADS + 1) * MOST_THREADS + n_threads)
        seen = 0
    waited = 0
    while waited <= patience:
        generation = see_at(sync + 8 * GENERATION)
        if generation == seen:
            waited += 1
            continue
        seen, waited = generation, 0
        if thread < generation % MOST_THREADS:
            work(sync, thread, generation % MOST_THREADS)
        if leads:
            break
    return seen

"""A mixture of experts: the choice of each token's experts, and their outputs.

Independent of layers and threads. https://arxiv.org/abs/2401.04088, https://arxiv.org/abs/2412.19437
"""

from __future__ import annotations

import numpy as np

from teachllama.kernels.blocks import row_nbytes
from teachllama.kernels.elementwise import gate, scalar_exp, sigmoid
from teachllama.kernels.fields import WIDTH, Score
from teachllama.kernels.matmul import multiply, width_of
from teachllama.kernels.simd import MASKED, f32_at, fma_numbers, jit, put_f32

SIGMOID, SOFTMAX_OF_CHOSEN = int(Score.SIGMOID), int(Score.SOFTMAX_OF_CHOSEN)


@jit
def _softmax(x: int, n: int, out: int) -> None:
    highest, total = np.float32(MASKED), np.float32(0)
    for i in range(n):
        highest = max(highest, f32_at(x + 4 * i))
    for i in range(n):
        e = scalar_exp(f32_at(x + 4 * i) - highest)
        put_f32(out + 4 * i, e)
        total += e
    for i in range(n):
        put_f32(out + 4 * i, f32_at(out + 4 * i) / total)


@jit
def _largest(x: int, n: int) -> int:
    """The index of the largest of n numbers; of equal ones the first."""
    best = 0
    for i in range(1, n):
        if f32_at(x + 4 * i) > f32_at(x + 4 * best):
            best = i
    return best


@jit
def _keep_best_groups(choice: int, n: int, n_groups: int, n_used: int, sums: int) -> None:
    """Masks all experts but those of the n_used groups whose two best experts have the largest sum."""
    size = n // n_groups
    for g in range(n_groups):
        first = choice + 4 * g * size
        best = _largest(first, size)
        second = np.float32(MASKED)
        for i in range(size):
            if i != best:
                second = max(second, f32_at(first + 4 * i))
        put_f32(sums + 4 * g, f32_at(first + 4 * best) + second)
    for g in range(n_groups):
        above = 0  # groups that rank before this one
        for other in range(n_groups):
            a, b = f32_at(sums + 4 * other), f32_at(sums + 4 * g)
            if a > b or (a == b and other < g):
                above += 1
        if above >= n_used:
            for i in range(size):
                put_f32(choice + 4 * (g * size + i), MASKED)


@jit
def select(
    x: int, n: int, n_used: int, kind: int, normalize: bool, factor: float, bias: int, n_groups: int,
    n_groups_used: int, out: int, scratch: int,
) -> None:  # fmt: skip
    """Chooses experts from a router's n outputs.

    Args:
        bias: address of n float32 that affect the choice but not the weights; 0: none.
        out: the indices of n_used experts, as float32, then their n_used weights.
        scratch: 3 * n float32.
    """
    scores, choice = scratch, scratch + 4 * n
    if kind == SIGMOID:
        for i in range(n):
            put_f32(scores + 4 * i, sigmoid(f32_at(x + 4 * i)))
    elif kind == SOFTMAX_OF_CHOSEN:
        for i in range(n):
            put_f32(scores + 4 * i, f32_at(x + 4 * i))
    else:
        _softmax(x, n, scores)
    for i in range(n):
        put_f32(choice + 4 * i, f32_at(scores + 4 * i) + (f32_at(bias + 4 * i) if bias else np.float32(0)))
    if n_groups > 1:
        _keep_best_groups(choice, n, n_groups, n_groups_used, scratch + 8 * n)
    weights, total = out + 4 * n_used, np.float32(0)
    for j in range(n_used):
        best = _largest(choice, n)
        put_f32(choice + 4 * best, np.float32(2) * np.float32(MASKED))
        put_f32(out + 4 * j, best)
        put_f32(weights + 4 * j, f32_at(scores + 4 * best))
        total += f32_at(scores + 4 * best)
    if kind == SOFTMAX_OF_CHOSEN:
        _softmax(weights, n_used, weights)
    elif normalize:
        factor = float(factor / max(total, np.float32(2**-14)))  # llama.cpp's bound, float16's smallest normal number
    for j in range(n_used):
        put_f32(weights + 4 * j, f32_at(weights + 4 * j) * np.float32(factor))


@jit
def visit(
    expert: int, n_tokens: int, dim: int, hidden: int, n_used: int, activation: int, x: int, chosen: int,
    gate_kind: int, gate_w: int, gate_bias: int, up_kind: int, up_w: int, up_bias: int, down_kind: int, down_w: int,
    down_bias: int, out: int, panel: int, room: int,
) -> None:  # fmt: skip
    """Runs one expert on all tokens that chose it: they are gathered into tiles, multiplied, and written back.

    Args:
        x: tiles of dim rows; chosen: for each token 2 * n_used numbers, as `select` writes them.
        out: for each token and each of its choices dim float32, not yet weighted.
        panel: PANEL * max(dim, hidden) float32; room: for each token, in whole tiles, 2 * dim + 2 * hidden + 2.
    """
    zero, no = np.int64(0), hidden < 0  # not constants: Numba would compile `multiply` again for them
    places = room  # for each gathered token: its index, and which of its choices this expert is
    padded = (n_tokens + WIDTH - 1) // WIDTH * WIDTH
    h = places + 8 * padded
    gates = h + 4 * padded * dim
    ups = gates + 4 * padded * hidden
    y = ups + 4 * padded * hidden
    count = 0
    for t in range(n_tokens):
        for j in range(n_used):
            if f32_at(chosen + 4 * (t * 2 * n_used + j)) == np.float32(expert):
                put_f32(places + 8 * count, t)
                put_f32(places + 8 * count + 4, j)
                count += 1
    if count == 0:
        return
    for tile in range((count + WIDTH - 1) // WIDTH):
        width, to = width_of(tile, count), h + 4 * WIDTH * tile * dim
        for lane in range(width):
            token = int(f32_at(places + 8 * min(count - 1, WIDTH * tile + lane)))
            source = x + 4 * (WIDTH * (token // WIDTH) * dim + token % WIDTH)
            stride = width_of(token // WIDTH, n_tokens)
            for d in range(dim):
                put_f32(to + 4 * (d * width + lane), f32_at(source + 4 * d * stride))
    rows = expert * hidden
    bias = gate_bias + 4 * rows if gate_bias else 0
    at = gate_w + rows * row_nbytes(gate_kind, dim)
    multiply(gate_kind, at, dim, zero, hidden, h, dim, zero, count, gates, hidden, zero, no, bias, panel)
    bias = up_bias + 4 * rows if up_bias else 0
    at = up_w + rows * row_nbytes(up_kind, dim)
    multiply(up_kind, at, dim, zero, hidden, h, dim, zero, count, ups, hidden, zero, no, bias, panel)
    for tile in range((count + WIDTH - 1) // WIDTH):
        first = 4 * WIDTH * tile * hidden
        gate(gates + first, ups + first, hidden * width_of(tile, count), activation, gates + first)
    rows = expert * dim
    bias = down_bias + 4 * rows if down_bias else 0
    at = down_w + rows * row_nbytes(down_kind, hidden)
    multiply(down_kind, at, hidden, zero, dim, gates, hidden, zero, count, y, dim, zero, no, bias, panel)
    for i in range(count):
        token, j = int(f32_at(places + 8 * i)), int(f32_at(places + 8 * i + 4))
        width = width_of(i // WIDTH, count)
        source, to = y + 4 * (WIDTH * (i // WIDTH) * dim + i % WIDTH), out + 4 * (token * n_used + j) * dim
        for d in range(dim):
            put_f32(to + 4 * d, f32_at(source + 4 * d * width))


@jit
def combine(x: int, chosen: int, n_used: int, dim: int, tile: int, n_tokens: int, out: int) -> None:
    """One tile of the results of `visit`, each times its expert's weight, summed: out (dim, width)."""
    width = width_of(tile, n_tokens)
    for lane in range(width):
        token = min(n_tokens - 1, WIDTH * tile + lane)
        weights = chosen + 4 * (token * 2 * n_used + n_used)
        for d in range(dim):
            total = np.float32(0)
            for j in range(n_used):
                total = fma_numbers(f32_at(weights + 4 * j), f32_at(x + 4 * ((token * n_used + j) * dim + d)), total)
            put_f32(out + 4 * (d * width + lane), total)

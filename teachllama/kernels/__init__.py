"""The engine's arithmetic compiled by Numba, beside the NumPy reference in `ops.py`.

simd -> blocks, elementwise, matmul, attention -> step -> cache, team -> compiled: each imports only what is before it.
"""

"""The engine's arithmetic compiled by Numba, beside the NumPy reference in `ops.py`.

fields, symbols -> shapes, simd -> blocks, elementwise -> matmul -> attention, experts -> run -> machine_code, team ->
record -> program -> compiled: each module imports only those before it.
"""

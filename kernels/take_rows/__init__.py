"""y = x[rows], such as every sequence's first token, for x (T, C), rows (S,) int32 without repeats, y (S, C).
x and dx may be stored as bf16; y and dy are float32.

Saved: rows. Backward: dx = 0, then dx[rows] = dy.
"""

"""y = x[rows], such as every sequence's first token, for x (T, C), rows (S,) int32 without repeats, y (S, C).

Saved: rows. Backward: dx = 0, then dx[rows] = dy.
"""

"""Dropout of token rows: y = x * mask, dx = dy * mask.

x, y, dx, dy (T, C); positions, examples (T,). The mask, 0 or 1 / (1 - rate), is a function of the token's position,
its example's number, the seed and the stream (kernels/common/philox.py): nothing is saved, backward draws it again.
"""

"""A linear layer: y = x wᵀ + bias, for x (T, C), w (F, C), bias (F,) or None, y (T, F).

Saved: x and w. Backward: dx = dy w (not computed where dx is None), dw += dyᵀ x, dbias += sum over T of dy.
"""

"""loss[s] = (x[s] - target[s])^2, for x (S, 1), target and loss (S,); the mean over S is the caller's.

Saved: x and target. Backward: dx = 2 dloss (x - target), for dloss (S,).
"""

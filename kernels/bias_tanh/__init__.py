"""y = tanh(x + bias), the end of BERT's pooler, for x and y (S, C), bias (C,).

Saved: y. Backward: dx = dy (1 - y^2), dbias += sum over S of dx. y may be x, dx may be dy.
"""

"""A linear layer: y = x wᵀ + bias, for x (T, C), w (F, C), bias (F,) or None, y (T, F).

Saved: x and w. Backward: dx = dy w (not computed where dx is None), dw += dyᵀ x or, without `add`, dw = dyᵀ x,
dbias += sum over T of dy. On the CPU in bf16 y and dy may be strips (common/packing.py).

A backend may want the weight in a form of its own: where `prepared_bytes(f, c)` is not 0, `prepare(prepared, w)` fills
that many bytes, on a 64-byte line, after each update of w, and forward and backward take `prepared` in place of w.
"""

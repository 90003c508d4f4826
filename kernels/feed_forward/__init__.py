"""BERT's feed-forward half: y = gelu(h + b1) w2ᵀ + b2, h = x w1ᵀ, for x, y (T, C), w1 (F, C), w2 (C, F), h (T, F).

Saved: x and h, whose numbers stand in the order that the backend likes, since its backward pass alone reads them.
gelu(h + b1), the largest array of a layer, is computed again in the backward pass, for a hundredth of its products:

    g = gelu(h + b1),   dh = (dy w2) gelu'(h + b1),   dx = dh w1
    dw2 += dyᵀ g,   db2 += sum over T of dy,   dw1 += dhᵀ x,   db1 += sum over T of dh

Without `add` dw1 and dw2 are overwritten.

w1 and w2 are as the device's matmul takes them (`prepare`); which GELU is meant says `tanh`, see bias_gelu.
"""

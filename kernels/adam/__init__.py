"""One update of Adam with decoupled weight decay, in place, for p, m, v, g of one shape.

    g' = scale g                      scale (1,): what clips the gradients (kernels/clip); NaN: nothing is done
    m  = beta1 m + (1 - beta1) g'     v = beta2 v + (1 - beta2) g'^2
    p -= lr (m / correction1 / (sqrt(v / correction2) + eps) + decay p)

copy, where it is not None, is p rounded to bf16, as uint16: what the products of a GPU take, in the same pass.

Bias correction is 1 - beta^step, or 1 for none: Google's optimizer for BERT has none, and its learning rates assume
that. Sources: Kingma and Ba, "Adam", 2015; Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
"""

"""One update of Adafactor without momentum, in place, for p and g (F, C), rows (F,) and columns (C,).

    g' = scale g                      scale (1,): what clips the gradients (kernels/clip); NaN: nothing is done
    rows    = beta2 rows    + (1 - beta2) (mean of g'^2 over columns + eps)
    columns = beta2 columns + (1 - beta2) (mean of g'^2 over rows + eps)
    u = g' / sqrt(rows columns / mean(rows))      the second moment of element (f, c) is rows[f] columns[c] / mean(rows)
    p -= lr (u / max(1, rms(u) / clip) + decay p)

rms(u) is the root of the mean of u^2 over all of p. A vector is a matrix of one row: the mean over rows is then g'^2
itself and the factor of the row is 1, which is Adafactor's unfactored form. beta2 is the caller's: it rises from 0, so
that no correction of a start from zero is needed.

Sources: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018, algorithms 4 and 5,
with a learning rate from outside instead of one relative to p's size; the decay is Adam's (kernels/adam).
"""

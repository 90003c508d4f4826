"""loss[s] = -(log softmax(x[:, 0])[starts[s]] + log softmax(x[:, 1])[ends[s]]) / 2, x the logits of window s.

logits (T, 2) of windows end to end: column 0 scores each token as an answer's start, column 1 as its end; window s is
the rows offsets[s] to offsets[s+1], offsets (S + 1,) int32. starts, ends (S,) int32 count from the window's first row;
loss (S,). An empty window costs nothing, and its labels are not read. Saved: logits and labels.
Backward: dlogits of a column = dloss[s] / 2 (softmax(column) - onehot(label)), for dloss (S,).

The softmax runs over the window's tokens. google-research/bert:run_squad.py runs it over the padded length, where every
[PAD] takes a share of the probability: this is the one difference.
"""

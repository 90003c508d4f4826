"""values[s, c, k], places[s, c, k]: the k-th largest logit of column c in window s, and its row in the window.

logits (T, 2) of windows end to end, window s the rows offsets[s] to offsets[s+1], offsets (S + 1,) int32; values
(S, 2, n) in descending order, places (S, 2, n) int32 counted from the window's first row. Equal logits stand in the
order of their rows, as google-research/bert:run_squad.py's stable sort leaves them. A window of fewer than n rows ends
in value -inf, place -1. NaN counts as larger than any number, so that a bad logit stands first and stays visible.
n is 20 in Google's recipe: prediction keeps 40 numbers a window instead of all logits.
"""

"""Attention over packed sequences: y = dropout(softmax(q kT / sqrt(D))) v, within each sequence and head.

qkv (T, 3C) holds q, k and v side by side, head h in columns h*D to (h+1)*D of each; y (T, C). It and dqkv are arrays
of the device's `projected_shape`, which are strips on the CPU in bf16. Sequence s is the rows offsets[s] to
offsets[s+1]; it may be empty. examples (T,); positions are counted from the sequence's first row.
lse (T, H), the logarithm of each row's sum of exponentials, is saved, with y and qkv, instead of probabilities:

    s = q kT / sqrt(D),  p = exp(s - lse),  dp = mask * (dy vT),  ds = p * (dp - rowsum(dy * y))
    dq = ds k / sqrt(D),  dk = dsT q / sqrt(D),  dv = (mask * p)T dy

rowsum(dy * y) is rowsum(p * dp): a kernel that never has a whole row of p at hand takes the former, and where y is
rounded to bf16 corrects it (gpu.cu). dqkv is overwritten. `longest` is the number of tokens of the longest sequence;
nothing of size T x T exists anywhere.
"""

"""loss[s] = -log softmax(logits[s])[labels[s]], for logits (S, K), labels (S,) int32 in [0, K), loss (S,).

The largest logit is subtracted first: any size of logits is safe. Saved: logits and labels.
Backward: dlogits = dloss[:, None] (softmax(logits) - onehot(labels)), for dloss (S,).
"""

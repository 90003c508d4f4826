"""BERT's input: z = word[ids] + segment[segments] + position[positions], y = dropout(LayerNorm(z) * gamma + beta).

ids, segments, positions, examples (T,); word (V, C), segment (types, C), position (longest, C); gamma, beta (C,);
y (T, C). LayerNorm as in dropout_add_layer_norm; mean and rstd (T,) are saved, z is summed again in backward.
As there, too, dy2 is a second gradient to be added to dy, or None. The tables' gradients are dense and added to, each
element's tokens in order.
"""

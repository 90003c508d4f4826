"""The end of each half of a BERT layer: z = residual + dropout(x), y = (z - mean) * rstd * gamma + beta.

x, residual, y (T, C); gamma, beta (C,); positions, examples (T,). mean and rstd = 1 / sqrt(variance + eps), both
(T,), are over C, the variance biased, from squared deviations: single-pass variances lose all digits where the
mean is large. Saved: x, residual, mean, rstd; the mask is drawn again.

Backward, with xhat = (z - mean) * rstd and g = dy * gamma:

    dresidual = rstd * (g - mean(g) - xhat * mean(g * xhat)),   dx = dresidual * mask
    dgamma += sum over T of dy * xhat,   dbeta += sum over T of dy

Where dy2 is not None, dy + dy2 stands for dy: y goes into the next half of a layer and past it, and both bring a
gradient back. They are added in float32 on their way in, where an operation of its own would round their sum to bf16.

x, residual, y and their gradients may be stored as bf16. No array may overlap another.
"""

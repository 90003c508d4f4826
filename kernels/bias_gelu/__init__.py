"""y = gelu(h), h = x + bias, for x and y (T, F), bias (F,); which GELU is the caller's word, since models differ:

    tanh false: gelu(h) = h Phi(h) = h/2 (1 + erf(h / sqrt 2))
    tanh true:  gelu(h) = h/2 (1 + tanh s) = h sigmoid(2 s),  s = sqrt(2/pi) (h + 0.044715 h^3)

Saved: x and bias, the rest is computed again. Backward: dx = dy gelu'(h), dbias += sum over T of dx, where

    tanh false: gelu'(h) = Phi(h) + h phi(h),  phi(h) = e^(-h^2 / 2) / sqrt(2 pi)
    tanh true:  gelu'(h) = p + h p (1 - p) 2 s',  p = sigmoid(2 s),  s' = sqrt(2/pi) (1 + 0.134145 h^2)

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016. dx may be dy.
"""

"""What an update multiplies its gradients by, clipped by their global norm; or that it must not be made.

    norm[0]  = sqrt(sum of totals)               totals (n,): the sum of squares of each group's gradients, float64
    scale[0] = most / max(norm[0], most)

norm and totals are float64. scale is NaN, with which optimizers do nothing at all, where the norm or one of the losses
is not finite, and where it is NaN already: weights stay as they were before the first such step until somebody has
looked.

So a device with a clock of its own needs no host between the gradients and the update. Source: Pascanu, Mikolov and
Bengio, "On the difficulty of training recurrent neural networks", 2013; most is 1 in google-research/bert.
"""

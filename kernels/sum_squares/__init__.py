"""total[0] = sum of x^2 in float64, for x of any shape and total (1,) float64, overwritten: the gradients' norm."""

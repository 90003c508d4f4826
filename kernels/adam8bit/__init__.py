"""One update of Adam (kernels/adam) in place, for p and g (N,) whose moments are kept in 8 bits.

m and root (blocks, 256), uint8, hold codes of the first moment and of the square root of the second, for 256 elements a
block, the last one filled up with zeros; m_largest and root_largest (blocks,) are what a block's numbers are shares of.
codes.py has the numbers of all codes: `SIGNED` those of m, `UNSIGNED` those of root. scale (1,): as in adam.

    M  = beta1 SIGNED[m] m_largest + (1 - beta1) g'              g' = scale g
    V  = beta2 (UNSIGNED[root] root_largest)^2 + (1 - beta2) g'^2
    p -= lr (M / correction1 / (sqrt(V / correction2) + eps) + decay p)
    m_largest, root_largest = the block's largest |M| and sqrt(V)
    m, root = the codes nearest to M / m_largest and sqrt(V) / root_largest; root is 0 only where V is

Why the root, and why it is 0 only where V is: no history of gradients makes M more than 7.3 sqrt(V) (Cauchy and
Schwarz: the sum of (0.1 0.9^k)^2 / (0.001 0.999^k) is 53), but where V is stored as 0 and M is not, the update is
M / eps, a million times M. The codes reach six powers of 8 down for M and seven for the other. If that other were V
itself, its root would reach three and a half: an element whose gradients are thousandths of its block's largest would
be lost from V long before it is lost from M. The root reaches farther than M, and what is below its smallest number
gets that: the update is too small then, not too large. Rounding each V up, which would keep updates small as well, is
no way: a V that falls by 0.1 % a step and is rounded up never falls.

Blocks are of 256 elements, not of 2048 as in the paper: that costs 0.03 bytes a parameter, and the larger a block, the
larger the errors. What remains of them: a moment that changes by less than half a step of its code does not change. An
element that gets no more gradients among others that do keeps an M of up to 2 % of its block's largest.

Sources: Dettmers, Lewis, Shleifer and Zettlemoyer, "8-bit Optimizers via Block-wise Quantization", 2022, for blocks and
dynamic codes; the root, its smallest number and the codes' details are this project's.
"""

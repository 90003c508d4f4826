"""The 256 numbers that a moment of 8 bits can be, as shares of its block's largest: dynamic codes.

A code's leading one says how often 1 is divided by 8, the bits below it where in the eighth to whole of that the number
lies: 64 steps between 1/8 and 1, 32 between 1/64 and 1/8, and so on, down to one. Both ends of such a range are numbers
of the code, 1 above all: a block's largest element must come back as it was, or each step would shrink it. Code 0 is 0.
Eight, and not ten as in the paper: a float32's exponent then says the range, and the steps are a tenth finer.
"""

from __future__ import annotations

import numpy as np

BLOCK = 256  # elements that share their largest
TINY = 2.0**-126  # what is below as a block's largest counts as 0: its reciprocal is no float32


def dynamic(bits: int) -> np.ndarray:
    """The numbers of all codes of so many bits, ascending from 0 to 1; each bit is a range."""
    code = np.arange(1, 2**bits)
    one = 2 ** np.floor(np.log2(code))  # the leading one, alone
    through = (code + 1 - one) / one  # above 0, at most 1
    division = (2 * one / 2**bits) ** 3  # 8^-r for a leading one r places below the highest
    return np.concatenate([[0], division * (1 + 7 * through) / 8])


UNSIGNED = dynamic(8)
SIGNED = np.concatenate([dynamic(7), -dynamic(7)])  # the highest bit is the sign

"""When two tokens of a frame count as one and the same: the rule's constants, shared by every implementation.

Identical tokens must tie, and the tie must go to the lowest index. Floating point alone does not see to that: a matrix
product may round the cosines of identical rows differently by their position, and then rounding decides which of them
is picked, on every backend another. So each implementation gives identical tokens the same cosines, and a cosine of
exactly 1 to each other.

Near-duplicates must not tie: the release tells them apart by their relevance. Two tokens are therefore identical only if

- their cosine is above `IDENTICAL_COSINE`, which leaves room for the rounding of the product, *and*
- their relevance is equal to the bit, *and*
- their fingerprint is equal to the bit.

Relevance and fingerprint are sums over one row, never a matrix product, so that equal rows give equal sums. The
fingerprint is needed where relevance says nothing (a zero query) and where that of near-duplicates is equal by chance,
which happens to one pair in ten thousand.
"""

import numpy as np

IDENTICAL_COSINE = 1 - 2.0**-20
FINGERPRINT_CHANNELS = 32  # enough to tell rows apart that differ in many channels, as features of images do


def fingerprint_weights(channels: int) -> np.ndarray:
    """Weights of a token's fingerprint, the weighted sum of the first channels of its unit vector.

    Args:
        channels: C, width of the tokens.

    Returns:
        [min(C, 32)] float32. Cosines of whole numbers: linearly independent, so that no two rows of simple numbers
        (one-hot, ±1) have the same sum.
    """
    return np.cos(np.arange(min(channels, FINGERPRINT_CHANNELS))).astype(np.float32)

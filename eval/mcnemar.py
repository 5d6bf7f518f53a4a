"""Whether two models differ in how often they are right, by the rows on which one alone is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import RunError


@dataclass(frozen=True)
class Discordance:
    """Rows by which of two models gets them right.

    Attributes:
        both: Right in both.
        first: In the first alone.
        second: In the second alone.
        neither: In neither.
        p: Of McNemar's exact test that the first alone and the second alone are as likely.
    """

    both: int
    first: int
    second: int
    neither: int
    p: float


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike) -> Discordance:
    """McNemar's exact test of two models on the same rows (Psychometrika 1947, 12).

    p = min(1, 2 P(X <= min(b, c))), X binomial with b + c trials of 1/2, where b and c count the
    rows that one of the two alone gets right; 1 where there is none. Rows that both get right, or
    neither, say nothing of a difference.

    Args:
        first: Whether the first model is right, (n,), true or 1.
        second: The same for the second.

    Raises:
        RunError: If the two are not of the same rows, or hold anything but right and wrong.
    """
    from scipy.special import bdtr

    a, b = (_flags(side) for side in (first, second))
    if a.shape != b.shape or a.ndim != 1:
        raise RunError(
            f"Expected right or wrong on the same rows, got shapes {a.shape} and {b.shape}; score "
            "both models on one test set."
        )
    alone = int((a & ~b).sum()), int((~a & b).sum())
    p = min(1.0, 2 * float(bdtr(min(alone), sum(alone), 0.5)))
    return Discordance(int((a & b).sum()), *alone, int((~a & ~b).sum()), p)


def _flags(side: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    values = np.asarray(side)
    if values.dtype != np.bool_ and not np.isin(values, (0, 1)).all():
        raise RunError("McNemar's test takes rows that are right (1) or wrong (0), not degrees.")
    return values.astype(np.bool_)

"""How far what was exported is from what was trained."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_LENGTH = 1e-12


@dataclass(frozen=True)
class Parity:
    """Vectors of an exported file beside those of the trained model.

    Attributes:
        rows: how many were compared.
        largest_difference: of two numbers, over all.
        smallest_cosine: of two vectors; 1 where there is none.
    """

    rows: int
    largest_difference: float
    smallest_cosine: float

    @classmethod
    def of(cls, found: NDArray[np.floating], wanted: NDArray[np.floating]) -> "Parity":
        """Returns the parity of vectors [m, D] with the wanted ones."""
        found, wanted = found.astype(np.float64), wanted.astype(np.float64)
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        cosine = (found * wanted).sum(1) / np.maximum(lengths, LEAST_LENGTH)
        cosine = np.where(lengths > LEAST_LENGTH, cosine, 1.0)
        difference = np.abs(found - wanted).max(initial=0.0)
        return cls(len(found), float(difference), float(cosine.min(initial=1.0)))

    def told(self) -> dict[str, Any]:
        """Returns the numbers as a record tells them."""
        return asdict(self)

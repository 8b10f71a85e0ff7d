"""Types of numpy arrays."""

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


Ints = NDArray[np.int64]


Int32s = NDArray[np.int32]


Floats = NDArray[np.float64]


Float32s = NDArray[np.float32]

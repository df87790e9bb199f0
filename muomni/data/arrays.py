"""Array types of the data rooms."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass
if TYPE_CHECKING:
    pass


Ints = NDArray[np.int64]


Floats = NDArray[np.float32]

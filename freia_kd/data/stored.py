"""Arrays on disk of which single rows are read: nothing of them stays open or in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np


class StoredArray:
    """An `.npy` file.

    Maps of many files would need as many open ones, of which a process may have a thousand, and
    would count as its memory as far as they have been read.

    Arguments:
        path: The file.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is not what `numpy.save` writes of numbers, or has been cut.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "array.npy")
        >>> np.save(path, np.arange(6).reshape(3, 2))
        >>> StoredArray(path).rows(np.array([2, 0, 2])).tolist()
        [[4, 5], [0, 1], [4, 5]]
    """

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r")
        if not mapped.flags.c_contiguous or not mapped.ndim:
            raise ValueError(f"{path.name} does not hold one row after the other")
        self.path, self._offset = path, mapped.offset
        self.shape, self.dtype, self.nbytes = mapped.shape, mapped.dtype, mapped.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        """The whole of it."""
        return np.load(self.path).__array__(*arguments, **options)

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """The rows with the numbers `wanted` `(B,)`.

        Raises:
            OSError: If they cannot be read any more.
        """
        found = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        parts = found.reshape(len(wanted), math.prod(self.shape[1:])).view(np.uint8)
        with self.path.open("rb", buffering=0) as file:
            for number, part in zip(wanted.tolist(), parts, strict=True):
                file.seek(self._offset + number * len(part))
                if file.readinto(part.data) != len(part):
                    raise OSError(f"The file {self.path} ends too early.")
        return found

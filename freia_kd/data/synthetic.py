"""A set of synthetic inputs with the teacher's answers, larger than memory if need be."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..device import free_memory, send
from ..domain import Domain
from ..errors import CheckpointError
from ..files import atomic, write_json
from .stored import StoredArray

_ARRAYS = ("inputs", "logits", "conditions")
KEPT = 2**28  # bytes of a set that is kept in memory once all of it may be asked for again
HELD = 0.25  # of a device's free memory, which a set may take that is held there


class SyntheticWriter:
    """Appends shards to a synthetic set; several workers may write to one folder.

    A shard is three `.npy` files and a small JSON that is written last: without it, the shard
    does not count. So a set is valid whenever the writer dies.

    Arguments:
        folder: The folder of the set.
        domain: What the inputs are; images are kept as uint8, vectors as float32.
        worker: This writer's number; each has its own shards.

    Raises:
        CheckpointError: If the folder holds a set of another shape or number of classes.
    """

    def __init__(self, folder: str | os.PathLike[str], domain: Domain, worker: int = 0) -> None:
        self.folder, self.domain, self.worker = Path(folder), domain, worker
        manifest = {"shape": list(domain.shape), "classes": domain.classes}
        path = self.folder / "manifest.json"
        if not path.exists():
            write_json(path, manifest)
        elif _read_json(path) != manifest:
            raise CheckpointError(
                f"Expected a synthetic set of {manifest} in {self.folder}; got {_read_json(path)}."
            )

    @property
    def shards(self) -> int:
        """The number of the shard that is next: the first that this worker has not yet written."""
        number = 0
        while shard_path(self.folder, number, self.worker).exists():
            number += 1
        return number

    def append(
        self, inputs: Tensor, logits: Tensor, conditions: Tensor, number: int | None = None
    ) -> None:
        """Writes one shard.

        Arguments:
            inputs: Quantised inputs with shape `(N, *shape)`: uint8 images (see
                :func:`quantise`), or float vectors.
            logits: The teacher's logits on these inputs, with shape `(N, classes)`.
            conditions: Class indices `(N,)` or soft labels `(N, classes)`.
            number: The shard's number, by default the first that there is not yet.
        """
        number = self.shards if number is None else number
        record, sums = shard_path(self.folder, number, self.worker), {}
        for name, value in zip(_ARRAYS, (inputs, logits, conditions), strict=True):
            path = record.with_suffix(f".{name}.npy")
            with atomic(path) as temporary:
                try:
                    np.save(temporary, value.cpu().numpy())
                except OSError as error:  # numpy counts bytes, and says neither where nor why
                    reason = error.strerror or f"The disk may be full ({error})"
                    raise OSError(error.errno or errno.ENOSPC, reason, str(path)) from error
                sums[name] = _checksum(temporary)
        write_json(record, {"count": len(inputs), "crc32": sums})


def shard_path(folder: Path, number: int, worker: int = 0) -> Path:
    """The file of a shard without which it does not count."""
    return folder / f"shard-{worker:03d}-{number:05d}.json"


def check_shard(record: Path) -> None:
    """Reads a shard whole.

    Arguments:
        record: The file by which it counts, :func:`shard_path`.

    Raises:
        CheckpointError: If its files are not what was written.
    """
    said = _read_json(record)
    sums = said.get("crc32") if isinstance(said, dict) else None
    for name in _ARRAYS:
        path = record.with_suffix(f".{name}.npy")
        if not path.exists():
            raise CheckpointError(f"Its file {path.name} is missing.")
        if not isinstance(sums, dict) or _checksum(path) != sums.get(name):
            raise CheckpointError(f"Its file {path.name} is not what was written.")


class SyntheticSet(Dataset):
    """Reads rows of a synthetic set from its files; a torch `Dataset`, for a `DataLoader` too.

    Any row may be asked for at any time, so that rows drawn at random, or in the order of a
    `DataLoader` with `shuffle=True`, are shuffled over the whole set and not within shards. However
    large the set is, at most a quarter of a gigabyte of it is in memory, and none of its files
    stays open. Where processes of another start method than `fork` get it, each opens the folder
    itself.

    Arguments:
        folder: The folder of the set.

    Raises:
        CheckpointError: If the folder holds no set, or a damaged one.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        manifest = _read_json(self.folder / "manifest.json")
        try:
            self.shape, self.classes = tuple(manifest["shape"]), int(manifest["classes"])
            counts = {
                path.stem: int(_read_json(path)["count"])
                for path in sorted(self.folder.glob("shard-*.json"))
            }
            self.shards = [
                [StoredArray(self.folder / f"{stem}.{name}.npy") for name in _ARRAYS]
                for stem in counts
            ]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"Damaged synthetic set in {self.folder}: {error}.") from error
        for (stem, count), arrays in zip(counts.items(), self.shards, strict=True):
            if any(len(a) != count for a in arrays) or arrays[0].shape[1:] != self.shape:
                raise CheckpointError(f"Damaged synthetic set in {self.folder}: shard {stem}.")
        self.ends = np.cumsum(list(counts.values()))
        self._bytes = sum(array.nbytes for shard in self.shards for array in shard)
        self._asked = 0  # rows that were asked for
        self._whole: list[np.ndarray] | None = None
        self._held: list[Tensor] | None = None

    def __reduce__(self) -> tuple[type[SyntheticSet], tuple[Path]]:
        return SyntheticSet, (self.folder,)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        inputs, logits, conditions = self.batch(torch.tensor([index]))
        return inputs[0], logits[0], conditions[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, ...]]:
        """Many at once, as a `DataLoader` asks for them."""
        return list(zip(*self.batch(torch.tensor(indices)), strict=True))

    @property
    def logits(self) -> list[StoredArray]:
        """The teacher's logits `(n, classes)` of each shard, which stay in their files."""
        return [shard[_ARRAYS.index("logits")] for shard in self.shards]

    def hold(self, device: torch.device | str) -> bool:
        """Puts the whole set onto a device, if a quarter of what is free there can take it.

        Arguments:
            device: The device, from which all batches come then.

        Returns:
            Whether it has been put onto one.
        """
        device = torch.device(device)
        if self._held is None and self._bytes <= HELD * (free_memory(device) or 0):
            self._held = [_together(arrays, device) for arrays in zip(*self.shards, strict=True)]
        return self._held is not None

    def batch(
        self, indices: Tensor, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (pixels in [0, 1] for images), teacher logits and conditions at `indices` `(B,)`.

        Arguments:
            indices: The rows, on the CPU.
            device: Where the three are wanted; pixels go there as bytes.

        Raises:
            IndexError: If an index is out of range.
        """
        wanted = indices.numpy()
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"Expected indices below {len(self)}; got {wanted.tolist()}.")
        inputs, logits, conditions = (send(part, device) for part in self._rows(indices))
        return dequantise(inputs), logits, conditions

    def _rows(self, indices: Tensor) -> list[Tensor]:
        if self._held is not None:
            return [part[send(indices, part.device)] for part in self._held]
        wanted = indices.numpy()
        parts = [a[wanted] for a in self._kept()] or self._read(wanted)
        self._asked += len(wanted)
        return [torch.from_numpy(part) for part in parts]

    def _kept(self) -> list[np.ndarray]:
        """The whole set in memory, if it is small and all of it may be asked for again; else none.

        A batch of rows of 32 shards takes 2 ms, and of one array a tenth of that.
        """
        is_small = 0 < self._bytes <= KEPT
        if self._whole is None and self._asked >= len(self) and is_small:
            self._whole = [np.concatenate(arrays) for arrays in zip(*self.shards, strict=True)]
        return self._whole or []

    def _read(self, wanted: np.ndarray) -> list[np.ndarray]:
        """Rows from the files."""
        shard = np.searchsorted(self.ends, wanted, side="right")
        starts = np.concatenate([[0], self.ends])
        parts: list[np.ndarray | None] = [None] * len(_ARRAYS)
        for s in np.unique(shard):
            rows = np.flatnonzero(shard == s)
            for i, array in enumerate(self.shards[s]):
                values = array.rows(wanted[rows] - starts[s])
                if parts[i] is None:
                    parts[i] = np.empty((len(wanted), *values.shape[1:]), values.dtype)
                parts[i][rows] = values  # type: ignore[index]
        return [part for part in parts if part is not None]


def _together(arrays: Sequence[StoredArray], device: torch.device) -> Tensor:
    """The rows of all shards in one tensor."""
    like = torch.from_numpy(arrays[0].rows(np.arange(1)))
    whole = like.new_empty((sum(map(len, arrays)), *like.shape[1:]), device=device)
    for part, array in zip(whole.split([len(a) for a in arrays]), arrays, strict=True):
        part.copy_(torch.from_numpy(np.asarray(array)))
    return whole


def quantise(x: Tensor) -> Tensor:
    """Pixels in [0, 1] to uint8; vectors `(B, D)` stay as they are."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8) if x.ndim == 4 else x


def dequantise(x: Tensor) -> Tensor:
    """uint8 to pixels in [0, 1]; floats stay as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def _checksum(path: Path) -> int:
    """The CRC-32 of a file's bytes, which finds damage, not malice."""
    value = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            value = zlib.crc32(part, value)
    return value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Expected a synthetic set with {path}; {error}.") from error

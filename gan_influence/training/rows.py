"""A training set as rows by index: a tensor, a tuple of tensors, or a data set that is read when it is needed."""

import hashlib

import torch
from torch import Tensor

from ..tools.storage import fingerprint

IN_MEMORY = "one tensor or array, (n, ...), a tuple of them, or a data set with a length that gives one instance for an index"


class Rows:
    """The instances of a training set by index, in a GAN's floating type on its device.

    A data set that is no tensor is read batch by batch and never held; an instance of it may be a tuple, such as (image, label).

    Raises:
        ValueError: when it is empty, holds numbers that are not finite, lies on another device than the networks, or gives
            another instance at the second asking.
    """

    def __init__(self, x, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] | None = None, anywhere: bool = False):
        for sign, seen, advice in (("_fields", "several parts", "pass one of them, such as data.train"), ("to_numpy", "a table", "pass its to_numpy()")):
            if hasattr(x, sign):
                raise ValueError(f"a training set is {IN_MEMORY}, but got {seen}, {type(x).__name__}: {advice}")
        x = x.dataset if isinstance(x, torch.utils.data.DataLoader) else x
        x = tuple(x.tensors) if isinstance(x, torch.utils.data.TensorDataset) else x
        self.shape = shape  #: of one instance, where the networks see another than the data have
        indexable = all(hasattr(x, method) for method in ("__getitem__", "__len__")) and not hasattr(x, "__array__")
        self.read = x if indexable and not isinstance(x, (Tensor, tuple, list, str)) else None
        given = () if self.read is not None else x if isinstance(x, tuple) else (x,)
        try:
            given = tuple(map(torch.as_tensor, given))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"a training set is {IN_MEMORY}, such as gi.data.images(folder), but got {type(x).__name__} ({error})") from error
        for column in given:
            if column.layout != torch.strided or column.is_complex():
                seen = "complex ones" if column.is_complex() else column.layout
                raise ValueError(f"a training set is a dense tensor of real numbers, but got {seen}: convert it first")
        self.device, self.dtype, self.anywhere = device, dtype, anywhere  # anywhere: in-memory data may lie elsewhere, and are moved batch by batch
        self.columns, self.single = tuple(self._fit(column, i) for i, column in enumerate(given)), not isinstance(x, tuple)
        self.low, self.high = torch.inf, -torch.inf  #: the smallest and the largest number of the first column
        self.n = len(self.read) if self.read is not None else len(self.columns[0]) if self.columns and self.columns[0].ndim else 0
        if not self.n or any(len(column) != self.n for column in self.columns) or self.columns and self.columns[0].ndim < 2:
            seen = ", ".join(str(tuple(column.shape)) for column in self.columns) or self.n
            raise ValueError(f"a training set is (n, ...) with n at least 1, got shape {seen}")
        self.fingerprint = self._hash_of_memory() if self.read is None else self._hash_of_read()

    def _fit(self, column: Tensor, i: int) -> Tensor:
        if self.read is None and column.device != self.device and not self.anywhere:
            raise ValueError(f"the data lies on {column.device} and the networks on {self.device}: move one of them, e.g. x.to({str(self.device)!r})")
        column = column.detach()
        place = column.device if self.anywhere else self.device
        column = column.to(place, self.dtype) if column.is_floating_point() or not i else column.to(place)
        return column if i or self.shape is None else column.reshape(-1, *self.shape)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, indices: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Instances by index (B,), a tensor or a tuple of them."""
        found = self.take(indices)
        return found[0] if len(found) == 1 and self.single else found

    def take(self, indices: Tensor) -> tuple[Tensor, ...]:
        """The same, always as a tuple of columns."""
        if self.read is None:
            return tuple(column[indices.to(column.device)].to(self.device) for column in self.columns)
        items = [item if isinstance(item, (tuple, list)) else (item,) for item in (self.read[int(i)] for i in indices)]
        if not items:
            return tuple(column[:0] for column in self.take(torch.tensor([0])))
        return tuple(self._fit(torch.stack(list(map(torch.as_tensor, column))), i).to(self.device) for i, column in enumerate(zip(*items)))

    def _hash_of_memory(self) -> str:
        self._finite(self.columns[0], 0)
        return "".join(map(fingerprint, self.columns))

    def _hash_of_read(self) -> str:
        """By one pass over the data set, of which nothing is kept."""
        digest, parts = hashlib.blake2b(digest_size=16), torch.arange(self.n).split(256)
        for part in parts:
            found = self.take(part)
            self._finite(found[0], int(part[0]))
            digest.update("".join(map(fingerprint, found)).encode())
        if any(not torch.equal(a, b) for a, b in zip(found, self.take(part))):
            raise ValueError("a training set gives the same instance for the same index, but this data set gave another at the second asking: take out what "
                             "it does at random, or in a loop of your own tell gi.Recorder what was drawn")
        return digest.hexdigest()

    def _finite(self, x: Tensor, first: int) -> None:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        if x.is_floating_point() and not x.isfinite().all():
            bad = (~x.flatten(1).isfinite().all(1)).nonzero()[0].item() + first
            raise ValueError(f"training instances must be finite, but instance {bad} holds a NaN or an infinity: take it out")

    def unchanged(self) -> bool:
        """Whether data in memory are still those that were trained on."""
        return self.read is not None or "".join(map(fingerprint, self.columns)) == self.fingerprint

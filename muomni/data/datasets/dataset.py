"""What training, validation and evaluation read."""

from hashlib import blake2b
from typing import Protocol, TypeVar

BatchT_co = TypeVar("BatchT_co", covariant=True)


class Dataset(Protocol[BatchT_co]):
    """Rows by number, counted on over the epochs: row i is in epoch i // num_rows.

    A row is a pure function of its number, so resuming a run, or sharing the rows out between processes, needs
    nothing but the number.
    """

    @property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        ...

    @property
    def key(self) -> str:
        """Names the rows: equal keys mean equal content."""
        ...

    @property
    def num_media_documents(self) -> int:
        """Documents that are decoded when they are read, so that some may turn out to be unreadable; 0 of text."""
        return 0

    @property
    def num_workers(self) -> int:
        """Threads that read ahead; 0 where rows are read when they are asked for."""
        return 0

    def batch(self, first_index: int, count: int, stride: int = 1) -> BatchT_co:
        """The rows first_index, first_index + stride, ... as one batch.

        Args:
            first_index: the first row.
            count: B, at least 1.
            stride: with R processes, R: process r asks for `batch(first + r, count, stride=R)`.
        """
        ...

    def close(self) -> None:
        """Ends threads that read ahead; what they are at is finished first."""
        return

    def batch_id(self, *numbers: int) -> str:
        """Names what is read with these numbers, see `Batch.id`."""
        return blake2b(f"{self.key} {numbers}".encode(), digest_size=8).hexdigest()

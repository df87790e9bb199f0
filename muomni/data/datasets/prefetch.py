"""Reads the next rows in threads while the model computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from muomni.data.datasets.batch import Batch, Row, collate
from muomni.data.datasets.dataset import Dataset
from muomni.data.datasets.multimodal import MultimodalDataset


class PrefetchLoader(Dataset[Batch]):
    """The same rows as `rows`, read ahead of time.

    After each batch the next rows of the same stride are begun, as many as that batch had or as there are
    workers if that is more, times two. A call for others is answered all the same, only without the gain, so
    a run may resume at any row. Decoding is done by libraries that release
    Python's lock, so threads work side by side. Used by one thread.

    Args:
        rows: what is read.
        workers: threads, at least 1.
    """

    def __init__(self, rows: MultimodalDataset, workers: int) -> None:
        self.rows = rows
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="rows")
        self._coming: dict[int, Future[Row]] = {}

    @property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        return self.rows.num_rows

    @property
    def key(self) -> str:
        """Names the rows."""
        return self.rows.key

    @property
    def num_media_documents(self) -> int:
        """Of the rows."""
        return self.rows.num_media_documents

    @property
    def num_workers(self) -> int:
        """Threads that read ahead."""
        return self._workers

    def batch(self, first_index: int, count: int, stride: int = 1) -> Batch:
        """See `Dataset.batch`."""
        if first_index < 0:
            raise IndexError(f"row {first_index} does not exist")
        wanted = [first_index + n * stride for n in range(count)]
        end = first_index + count * stride
        ahead = [end + n * stride for n in range(2 * max(count, self._workers))]
        needed = {*wanted, *ahead}
        for index in [index for index in self._coming if index not in needed]:
            self._coming.pop(index).cancel()
        for index in (*wanted, *ahead):
            if index not in self._coming:
                self._coming[index] = self._pool.submit(self.rows.row, index)
        read = [self._coming.pop(index).result() for index in wanted]
        return collate(read, self.batch_id(first_index, count, stride))

    def close(self) -> None:
        """Ends the threads; what they are at is finished first."""
        self._coming.clear()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

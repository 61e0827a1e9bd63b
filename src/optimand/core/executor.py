"""Independent tasks, here or in worker processes: data generation, sweeps, ensembles, seeds.

Results do not depend on the engine or the order of completion: each task gets the seed `(seed, index)`, and a task that
raises is tried again and then reported as a `Failure`, without ending the others.
"""

import abc
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from .arguments import need_count

__all__ = ["Executor", "Failure", "ProcessPool", "SerialExecutor"]


@dataclass(frozen=True)
class Failure:
    """What is left of a task that failed each time it was tried."""

    index: int
    error: str
    traceback: str
    tries: int


class Executor(abc.ABC):
    """Maps a function over items, in no particular order."""

    def __init__(self, retries: int = 1):
        need_count("retries", retries, least=0)
        self.retries = retries

    @abc.abstractmethod
    def map_unordered(
        self, fn: Callable[[Any, tuple[int, int]], Any], items: Iterable, *, seed: int = 0
    ) -> Iterator[tuple[int, Any]]:
        """Yield `(index, fn(item, (seed, index)))` as tasks end; a `Failure` stands for a result that never came.

        Make a key of the pair with `jax.random.fold_in(jax.random.key(seed), index)`.
        """

    def map(self, fn: Callable[[Any, tuple[int, int]], Any], items: Iterable, *, seed: int = 0) -> list:
        """All results, in the order of the items."""
        results = dict(self.map_unordered(fn, items, seed=seed))
        return [results[index] for index in sorted(results)]


class SerialExecutor(Executor):
    """One task after the other, in this process."""

    def map_unordered(self, fn, items, *, seed=0):
        for index, item in enumerate(items):
            for tries in range(1, self.retries + 2):
                try:
                    yield index, fn(item, (seed, index))
                    break
                except Exception as error:
                    if tries > self.retries:
                        yield index, _failure(index, error, tries)


class ProcessPool(Executor):
    """Worker processes on this machine, each with one thread for linear algebra.

    **Arguments:**

    - `workers`: how many; by default one a core.
    - `retries`: how often a task is tried again after it raised, or after its process died.
    - `threads`: of each worker.

    Workers are started afresh (`spawn`), never forked: a process that has used JAX must not be. `fn` and the items have to
    be picklable, and a script must guard its start with `if __name__ == "__main__":`.
    """

    def __init__(self, workers: int | None = None, retries: int = 1, threads: int = 1):
        super().__init__(retries)
        workers = os.cpu_count() or 1 if workers is None else workers
        for name, count in (("workers", workers), ("threads", threads)):
            need_count(name, count)
        self.workers = workers
        self.threads = threads

    def map_unordered(self, fn, items, *, seed=0):
        queue = list(enumerate(items))[::-1]
        tries = dict.fromkeys((index for index, _ in queue), 0)
        pending: dict[Future, tuple[int, Any]] = {}
        suspects: set[int] = set()  # tasks that ran while a worker died: tried again one at a time
        pool = self._pool()
        try:
            while queue or pending:
                died = False
                while queue and not died and len(pending) < (1 if suspects else 2 * self.workers):
                    index, item = queue.pop()
                    try:
                        pending[pool.submit(fn, item, (seed, index))] = (index, item)
                        tries[index] += 1
                    except BrokenProcessPool:
                        queue.append((index, item))
                        died = True
                ended = set(wait(pending, return_when=FIRST_COMPLETED).done)
                died = died or any(isinstance(future.exception(), BrokenProcessPool) for future in ended)
                if died:  # and took the pool along: every task in it has ended, one way or the other
                    ended |= wait(pending).done
                    pool.shutdown(wait=False, cancel_futures=True)
                    pool = self._pool()
                lost = [future for future in ended if isinstance(future.exception(), BrokenProcessPool)]
                for future in ended:
                    index, item = pending.pop(future)
                    error = future.exception()
                    if future in lost and len(lost) > 1:  # nobody knows whose task it was
                        tries[index] -= 1
                        suspects.add(index)
                        queue.append((index, item))
                        continue
                    if error is not None and tries[index] <= self.retries:
                        queue.append((index, item))
                        continue
                    suspects.discard(index)
                    yield index, (future.result() if error is None else _failure(index, error, tries[index]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.workers,
            mp_context=get_context("spawn"),
            initializer=_limit_threads,
            initargs=(self.threads,),
        )


def _failure(index: int, error: BaseException, tries: int) -> Failure:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return Failure(index, f"{type(error).__name__}: {error}", "".join(lines), tries)


def _limit_threads(count: int) -> None:
    """In a new worker, before it imports anything numerical."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    if "jax" not in sys.modules and count == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".strip()

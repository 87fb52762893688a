"""One thread that computes, and the fair queue before it.

Up to `Limits.active` requests are under way at once and take turns, one result each: a chunk of a stream or a piece of
a text. So a short request does not wait for the end of a long one. The others wait in the order in which they came. All
state of a request is in its generator, which starts, runs and is closed on the one thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar, cast

from .settings import Limits

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Full(Exception):
    """As many requests are there as may wait."""


class Left(Exception):
    """Raised within the work of a request whose client is gone."""


class Job(Generic[T]):
    """The results of one request, made on the worker's thread and read on the event loop's.

    Attributes:
        left: nobody reads any more.
        made, taken: results so far, each counted by one thread.
    """

    def __init__(self, work: Callable[[Job[T]], Iterator[T]], worker: Worker) -> None:
        self.left = False
        self.made = self.taken = 0
        self._work, self._worker = work, worker
        self._steps: Iterator[T] | None = None
        self._loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[tuple[T | None, BaseException | None]] = asyncio.Queue()

    def check(self) -> None:
        """For the work itself, to stop within a result; ends others whose clients are gone.

        Raises:
            Left: the client is gone.
        """
        self._worker.end_left(but=self)
        if self.left:
            raise Left

    def step(self) -> bool:
        """Make one result; False when there are no more."""
        result: T | None = None
        error: BaseException | None = None
        try:
            if self._steps is None:
                self._steps = iter(self._work(self))
            result = next(self._steps)
        except Left:
            return False
        except StopIteration:
            error = StopAsyncIteration()
        except Exception as raised:  # of any kind: its client gets it, the other requests go on
            error = raised
        self.made += 1
        try:
            self._loop.call_soon_threadsafe(self._results.put_nowait, (result, error))
        except RuntimeError:  # the loop is closed, and its clients are gone
            return False
        return error is None

    def close(self) -> None:
        """End the work where it is."""
        close = getattr(self._steps, "close", None)
        self._steps = None
        if close is not None:
            try:
                close()
            except Exception:
                logger.exception("a request did not end well")

    def __aiter__(self) -> Job[T]:
        return self

    async def __anext__(self) -> T:
        result, error = await self._results.get()
        self.taken += 1
        self._worker.wake()
        if error is not None:
            raise error
        return cast(T, result)


class Worker:
    """The thread and its queue.

    Args:
        limits: `active`, `waiting` and `ahead` count here.
        ended: called when a request has ended and its work is closed.
    """

    def __init__(self, limits: Limits, ended: Callable[[], None]) -> None:
        self.limits = limits
        self._tidy = ended
        self._places = 0
        self._waiting: deque[Job[Any]] = deque()
        self._active: deque[Job[Any]] = deque()  # whose turn is next stands first
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="synthesis", daemon=True)

    def start(self) -> None:
        """From here on work is done."""
        self._thread.start()

    def stop(self) -> None:
        """End all work and wait for the thread."""
        with self._changed:
            self._ended = True
            for job in (*self._waiting, *self._active):
                job.left = True
            self._changed.notify()
        self._thread.join()

    @property
    def busy(self) -> tuple[int, int]:
        """Requests under way and requests that wait; what a client left counts until it has ended."""
        with self._changed:
            return len(self._active), len(self._waiting)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Room for one request, from before its body is read until it is answered; on the event loop's thread.

        Raises:
            Full: there is none.
        """
        if self._places >= self.limits.active + self.limits.waiting:
            raise Full
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    @asynccontextmanager
    async def results(self, work: Callable[[Job[T]], Iterator[T]]) -> AsyncIterator[Job[T]]:
        """Put work into the queue and give its results; leaving ends it, done or not.

        Args:
            work: gives the results, called on the worker's thread; may call `check` of the job.
        """
        job = Job(work, self)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        try:
            yield job
        finally:
            job.left = True
            self.wake()

    def wake(self) -> None:
        """Something may be to do."""
        with self._changed:
            self._changed.notify()

    def end_left(self, but: Job[Any] | None = None) -> None:
        """End the work that clients left, `but` the one that is at work; on the worker's thread."""
        with self._changed:
            gone = [job for job in self._active if job.left and job is not but]
        for job in gone:
            self._drop(job)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._something())
            self.end_left()
            with self._changed:
                if self._ended:
                    return
                self._waiting = deque(job for job in self._waiting if not job.left)
                job = self._next()
            if job is not None and not job.step():
                self._drop(job)

    def _drop(self, job: Job[Any]) -> None:
        job.close()
        with self._changed:
            self._active.remove(job)
        self._tidy()

    def _something(self) -> bool:
        everybody = (*self._active, *self._waiting)
        return any(job.left for job in everybody) or bool(self._ready()) or bool(self._waiting)

    def _ready(self) -> list[Job[Any]]:
        return [job for job in self._active if not job.left and job.made - job.taken < self.limits.ahead]

    def _next(self) -> Job[Any] | None:
        """Whose turn it is. Who does not take results has none, and leaves the room to those who wait.

        A first turn comes at once: speech only takes its row of the decoder in it.
        """
        while self._waiting and len(self._ready()) < self.limits.active:
            self._active.append(self._waiting.popleft())
        if not (ready := self._ready()):
            return None
        job = min(ready, key=lambda job: job.made > 0)
        self._active.remove(job)
        self._active.append(job)
        return job

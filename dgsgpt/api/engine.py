"""One model at work: a thread of its own that carries out one order after the other, and the queue before it.

The thread hands every event to the event loop of the server as it comes. What it waits for is bounded: so many orders
may wait, the next one is refused. A job that nobody wants any more ends before the model's next forward pass, and
leaves nothing behind: its cache goes with the frames of the generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dgsgpt.api.problems import ApiError, busy, shutting_down
from dgsgpt.api.schema import Order
from dgsgpt.api.writing import Event, Tally, write
from dgsgpt.errors import DgsgptError

if TYPE_CHECKING:
    from dgsgpt.checkpoint import Checkpoint

MAX_WAITING = 8


class _StoppedError(Exception):
    """Out of the model, back to the thread."""


class Job:
    """An order on its way: its events for the event loop, and a stop for the thread that writes."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.tally = Tally()
        self.future: Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        # Not bounded: a slow reader must not keep the model from others, and the pieces of an order are bounded.
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._stopped = False
        self._problem: ApiError | None = None
        self.abandoned = False

    # ------------------------------------------------------------ in the thread
    def check(self) -> None:
        """Leave the model if the job was stopped."""
        if self._stopped:
            raise _StoppedError

    def fail(self, problem: ApiError) -> None:
        """What `events` is to raise at the end."""
        self._problem = self._problem or problem

    def send(self, event: Event | None) -> None:
        """Hand an event to the event loop; None is the end."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    # ------------------------------------------------------------ in the event loop
    async def events(self) -> AsyncIterator[Event]:
        """What is written, as it is written.

        Raises:
            ApiError: the order cannot be carried out, or the server shuts down.
        """
        while (event := await self._events.get()) is not None:
            yield event
        assert self.future is not None, "the end is sent by the future"
        if self._problem is not None:
            raise self._problem
        self.future.result()  # raises what is a bug of ours

    def abandon(self) -> None:
        """Nobody waits for it any more; nothing happens to one that has ended."""
        if self.future is not None and not self.future.done():
            self.abandoned = True
            self.stop()

    def stop(self) -> None:
        """End at the next forward pass, or before the first."""
        self._stopped = True
        if self.future is not None:
            self.future.cancel()  # only one that still waits can be


@dataclasses.dataclass(frozen=True)
class Served:
    """A checkpoint under the name that clients give."""

    id: str
    checkpoint: Checkpoint
    created: int


class Engine:
    """The thread of one model and its queue."""

    def __init__(self, served: Served, max_waiting: int = MAX_WAITING) -> None:
        self.served = served
        self._places = max_waiting + 1
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dgsgpt-writer")
        self._lock = threading.Lock()
        self._jobs: set[Job] = set()
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether no order is carried out or waits."""
        with self._lock:
            return not self._jobs

    def submit(self, order: Order) -> Job:
        """Queue an order.

        Raises:
            ApiError: 503, too many wait already or the server shuts down.
        """
        job = Job(order)
        with self._lock:
            if self._closed:
                raise shutting_down()
            if len(self._jobs) >= self._places:
                raise busy(self.served.id, self._places - 1)
            self._jobs.add(job)
            job.future = self._pool.submit(self._work, job)
        job.future.add_done_callback(lambda _: self._leave(job))
        return job

    def close(self) -> None:
        """Stop every job; what is asked from now on is refused."""
        with self._lock:
            self._closed = True
            jobs = list(self._jobs)
        for job in jobs:
            job.fail(shutting_down())
            job.stop()
        self._pool.shutdown(wait=False)

    def _leave(self, job: Job) -> None:
        with self._lock:
            self._jobs.discard(job)
        # The pool keeps a job that was cancelled until its turn comes; without its text it weighs nothing.
        job.order = dataclasses.replace(job.order, prompts=[])
        job.send(None)

    def _work(self, job: Job) -> None:
        def before_forward(module: Any, given: Any) -> None:
            job.check()

        # Between two pieces there may be many passes: a long prompt, or tokens that are no text.
        hook = self.served.checkpoint.model.register_forward_pre_hook(before_forward)
        try:
            for event in write(self.served.checkpoint, job.order, job.tally):
                job.check()
                job.send(event)
        except _StoppedError:
            pass
        # Handed over without its traceback, whose frames would keep the cache in memory.
        except ApiError as e:
            job.fail(e.with_traceback(None))
        except DgsgptError as e:
            job.fail(ApiError(500, str(e)))
        finally:
            hook.remove()


__all__ = ["MAX_WAITING", "Engine", "Job", "Served"]

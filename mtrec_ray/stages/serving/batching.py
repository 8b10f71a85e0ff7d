"""Requests that come close together are answered in one call; none waits in a growing queue."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from mtrec_ray.stages.serving.limits import TooManyError

Asked = TypeVar("Asked")
Told = TypeVar("Told")

SMOOTHING = 0.9  # of the mean time of a request


class Batcher(Generic[Asked, Told]):
    """Hands up to `size` requests at a time to a function that runs in a thread of its own.

    While a call runs, up to `queue` requests wait for the next ones; more are refused. A call waits
    at most `wait_s` until as many are there as were lately: who asks alone never waits.

    Attributes:
        seconds: the mean time of a request in its call.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], Sequence[Told]],
        *,
        size: int,
        wait_s: float,
        queue: int,
        told: Callable[[int], None] = lambda size: None,
        common: tuple[type[Exception], ...] = (),
    ) -> None:
        """`told` hears how many requests each call answers.

        An error of a kind in `common` is that of all requests of a call; after another one they are
        asked one by one.
        """
        self.answer, self.size, self.wait_s, self.told = answer, size, wait_s, told
        self.common, self.most, self.seconds, self.expected = common, queue, 0.01, 1
        self.waiting: asyncio.Queue[tuple[Asked, asyncio.Future[Told]]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1, "engine")
        self.task: asyncio.Task[None] | None = None

    async def ask(self, request: Asked) -> Told:
        """Returns the answer to a request.

        Raises:
            TooManyError: as many as may wait are waiting.
        """
        waiting = self.waiting.qsize()
        if waiting >= self.most:
            line = f"requests: found {waiting} that wait; allowed: at most {self.most}"
            raise TooManyError(line, waiting * self.seconds)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.run())
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((request, future))
        return await future

    async def run(self) -> None:
        """Answer what waits, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [one for one in await self.next_batch() if not one[1].done()]
            if not batch:
                continue
            self.told(len(batch))
            began = time.monotonic()
            answers = await loop.run_in_executor(
                self.thread, self.answered, [request for request, _ in batch]
            )
            each = (time.monotonic() - began) / len(batch)
            self.expected = min(len(batch) + self.waiting.qsize(), self.size)
            self.seconds = SMOOTHING * self.seconds + (1 - SMOOTHING) * each
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # given up
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def next_batch(self) -> list[tuple[Asked, asyncio.Future[Told]]]:
        """Returns the requests of the next call, once there is one."""
        batch = [await self.waiting.get()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.wait_s):
                while len(batch) < self.expected:
                    batch.append(await self.waiting.get())
        while len(batch) < self.size and not self.waiting.empty():
            batch.append(self.waiting.get_nowait())
        return batch

    def answered(self, requests: Sequence[Asked]) -> Sequence[Told | Exception]:
        """Returns an answer or an error for each request: one that fails spoils no other."""
        try:
            return self.answer(requests)
        except self.common as error:
            return [error] * len(requests)
        except Exception as error:
            if len(requests) == 1:
                logging.getLogger(__name__).exception("a request failed")
                return [error]
        return [answer for request in requests for answer in self.answered([request])]

    def close(self) -> None:
        """Stop answering."""
        if self.task is not None:
            self.task.cancel()
        self.thread.shutdown(wait=False)

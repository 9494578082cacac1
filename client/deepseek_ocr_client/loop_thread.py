"""An event loop in a thread of its own: there the asynchronous core runs for callers that are synchronous.

One thread a process, started on first use and shared by all clients, because gRPC serves one loop best. A
forked process starts its own; at the interpreter's end the requests under way are cancelled.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from deepseek_ocr_client.errors import RequestCancelled, ServerFailed

Result = TypeVar("Result")

END_SECONDS = 5.0  # for requests and connections to end with the interpreter


class Closable(Protocol):
    """What has connections in the loop."""

    async def close(self) -> None:
        """Close them."""


class Call(Generic[Result]):
    """A coroutine under way in the loop's thread. `future` is done when it has ended, cleaning up included."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Result]) -> None:
        self.future: Future[Result] = Future()
        self._loop = loop
        self._task: asyncio.Task[Result]
        try:
            loop.call_soon_threadsafe(self._begin, coroutine)
        except RuntimeError:  # closed with the interpreter
            coroutine.close()
            raise ServerFailed("The interpreter is shutting down.") from None

    def cancel(self) -> None:
        """Ask it to end; from any thread, at any time, without waiting."""
        if not self.future.done():
            with suppress(RuntimeError):  # the loop has ended, and all its calls with it
                self._loop.call_soon_threadsafe(lambda: self._task.cancel())

    def result(self) -> Result:
        """Wait for it; an interrupt cancels it."""
        try:
            return self.future.result()
        except BaseException:
            self.cancel()
            raise

    def _begin(self, coroutine: Coroutine[Any, Any, Result]) -> None:
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Result]) -> None:
        if task.cancelled():
            self.future.set_exception(RequestCancelled("The request was cancelled."))
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())


class LoopThread:
    """The thread. `closables` are closed with it."""

    def __init__(self) -> None:
        self.closables: weakref.WeakSet[Closable] = weakref.WeakSet()
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="deepseek-ocr-client", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> Call[Result]:
        """Start `coroutine` in the loop."""
        return Call(self._loop, coroutine)

    def close_soon(self, closable: Closable) -> None:
        """Close what nobody holds any more, without waiting; does nothing in a forked process."""
        if os.getpid() == self._process:
            with suppress(ServerFailed):  # closed with the interpreter
                self.submit(closable.close())

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2 * END_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        try:
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_SECONDS)
        closing = asyncio.gather(*(each.close() for each in list(self.closables)), return_exceptions=True)
        await asyncio.wait([closing], timeout=END_SECONDS)


_lock = threading.Lock()
_current: LoopThread | None = None


def loop_thread() -> LoopThread:
    """This process's thread."""
    global _current
    with _lock:
        if _current is None:
            _current = LoopThread()
            atexit.register(_stop)
        return _current


def _stop() -> None:
    if _current is not None:
        _current.stop()


def _forget() -> None:
    global _lock, _current
    _lock, _current = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

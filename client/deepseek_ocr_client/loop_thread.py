"""An event loop in a thread of its own: there the asynchronous core runs for callers that are synchronous.

One thread a process, started on first use and shared by all clients, because gRPC serves one loop best. At
the interpreter's end the requests under way are cancelled. A forked process starts a thread of its own; gRPC
can't be used there if its channels were open in the fork, so idle ones are closed before it.
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

from deepseek_ocr_client.errors import ClientError, RequestCancelled, ServerFailed

Result = TypeVar("Result")

END_SECONDS = 5.0  # for requests and connections to end with the interpreter


class Closable(Protocol):
    """What has connections in the loop."""

    async def close(self) -> None:
        """Close them for good."""

    async def disconnect(self) -> None:
        """Close them; the next request opens new ones."""


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

    def rest(self) -> bool:
        """Close all connections, if no request is under way; returns whether that was done."""

        async def disconnect() -> bool:
            if len(asyncio.all_tasks()) > 1:
                return False
            for each in list(self.closables):
                await each.disconnect()
            return True

        return self.submit(disconnect()).future.result(END_SECONDS)

    def stop(self) -> None:
        """End the loop and its thread."""
        with suppress(RuntimeError):  # a forked process may ask twice
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
_resting = True
_forked_busy = False


def loop_thread() -> LoopThread:
    """This process's thread; `ServerFailed` where a fork has left none that works."""
    global _current
    if _forked_busy:
        raise ServerFailed(
            "This process was forked while its parent was reading pages, so it can't read any.",
            "Fork before, or start processes with `spawn`.",
        )
    with _lock:
        if _current is None:
            _current = LoopThread()
            atexit.register(_stop)
        return _current


def _stop() -> None:
    if _current is not None:
        _current.stop()


def _before_fork() -> None:
    global _resting
    _resting = _current is None
    if _current is not None:
        with suppress(ClientError, TimeoutError):
            _resting = _current.rest()


def _after_fork() -> None:
    global _lock, _current, _forked_busy
    _lock, _current, _forked_busy = threading.Lock(), None, _forked_busy or not _resting


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)

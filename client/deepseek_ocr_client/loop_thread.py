"""An event loop in a thread of its own: there `AsyncOcrClient` works for callers that are synchronous.

One thread a process, started on first use and shared by all clients, because gRPC serves one loop best. At
the interpreter's end the requests under way are cancelled. A forked process starts a thread of its own; gRPC
can't be used there if its channels were open in the fork, so idle ones are closed before it. With requests
under way that can't be done: the forked process is refused, if gRPC's own handlers let it live.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from deepseek_ocr_client.errors import ClientError, RequestCancelled, ServerFailed

if TYPE_CHECKING:
    from deepseek_ocr_client.aio import AsyncOcrClient

Result = TypeVar("Result")
END_SECONDS = 5.0  # for requests to be cancelled, and for connections to close


class Call(Generic[Result]):
    """A coroutine under way in the loop's thread. `future` is done when it has ended, cleaning up included."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Result]) -> None:
        self.future: Future[Result] = Future()
        self._loop = loop
        self._task: asyncio.Task[Result]
        try:
            loop.call_soon_threadsafe(self._begin, coroutine)
        except RuntimeError:  # the loop is closed
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
    """The thread, and the `clients` that have connections in it."""

    def __init__(self) -> None:
        self.clients: weakref.WeakSet[AsyncOcrClient] = weakref.WeakSet()
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="deepseek-ocr-client", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> Call[Result]:
        """Start `coroutine` in the loop; `ServerFailed` where the loop has ended with the interpreter."""
        return Call(self._loop, coroutine)

    def close_soon(self, client: AsyncOcrClient) -> None:
        """Close a client that nobody holds any more, without waiting; in a forked process it has nothing."""
        if os.getpid() == self._process:
            with suppress(ServerFailed):
                self.submit(client.close())

    def disconnect_idle(self) -> bool:
        """Close all connections if no request is under way; returns whether that was so."""

        async def disconnect() -> bool:
            idle = len(asyncio.all_tasks()) == 1
            if idle:
                await asyncio.gather(*(client.disconnect() for client in list(self.clients)))
            return idle

        with suppress(ClientError):
            call = self.submit(disconnect())
            wait([call.future], END_SECONDS)
            return call.future.done() and call.future.result()
        return False

    def _stop(self) -> None:
        if os.getpid() == self._process:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(2 * END_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        try:
            self._loop.run_until_complete(self._finish())
        finally:
            self._loop.close()

    async def _finish(self) -> None:
        """Cancel what is under way, then close the connections."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_SECONDS)
        closing = [asyncio.create_task(client.close()) for client in list(self.clients)]
        if closing:
            await asyncio.wait(closing, timeout=END_SECONDS)


_lock = threading.Lock()
_current: LoopThread | None = None
_idle_at_fork = True


def loop_thread() -> LoopThread:
    """This process's thread; `ServerFailed` where a fork has left gRPC unusable."""
    global _current
    if not _idle_at_fork and _current is None:
        raise ServerFailed(
            "This process was forked while its parent was reading pages, so it can't read any.",
            "Fork before, or start processes with `spawn`.",
        )
    with _lock:
        if _current is None:
            _current = LoopThread()
        return _current


def _before_fork() -> None:
    global _idle_at_fork
    if _current is not None:
        _idle_at_fork = _current.disconnect_idle()


def _in_child() -> None:
    global _lock, _current
    _lock, _current = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)

"""A sign of life of a model's process: a number in a file that grows, which the launcher watches."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

FOLDER = "OCR_HEARTBEATS"
"""Environment variable: the folder of the files, each named by its process id; set by the launcher."""
SECONDS = 1.0


def start() -> None:
    """Begin to beat, from a thread that ends with the process; nothing without the launcher.

    A process that is stopped, or that holds Python's lock without end, beats no more. A single request that hangs is
    not seen here: its time limit ends it.
    """
    folder = os.environ.get(FOLDER)
    if folder:
        path = Path(folder) / str(os.getpid())
        threading.Thread(target=_beat, args=(path,), name="heartbeat", daemon=True).start()


def _beat(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for count in itertools.count(1):
            os.pwrite(file.fileno(), b"%20d" % count, 0)
            time.sleep(SECONDS)

"""How an app is served: uvicorn as a line needs it, and how the process ends, and with what status."""

import fcntl
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import structlog
import uvicorn
from fastapi import FastAPI

from service import inlet
from service.settings import Settings, SettingsError

# a client's last screens are answered before the process ends
GRACE_S = 35
# longer than any takt: a line controller keeps its connection from one screen to the next
KEEP_ALIVE_S = 75

LOCK_FILE = "service.lock"  # in the folder of the record

# how a service ends that has lost a device for good: whatever supervises it starts a new process, which has it again
DEVICE_GONE = os.EX_TEMPFAIL

# threads for which nobody waits without a limit: `service.scheduler` and `service.attempts` name theirs so
MAY_HANG = ("device", "attempt")

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.server")


def serve(make_app: Callable[[Callable[[], None]], FastAPI], settings: Settings) -> int:
    """Serve until a signal, or until a device is gone; the exit status of the process, which is to `leave` with it.

    Args:
        make_app: makes the app, given what it is to call once a device is gone.
        settings: host, port and folder of the record.

    Raises:
        SettingsError: the port or the folder is another's, or cannot be used.
    """
    # whoever stops the service has asked for it: uvicorn ends by the signal that stopped it, which would be a failure
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cv2.setNumThreads(1)  # screens run side by side, and OpenCV's own threads would spin beside them for more work
    status = 0

    def end() -> None:  # as a signal does: screens under way are answered
        nonlocal status
        status, server.should_exit = DEVICE_GONE, True

    with _claimed(settings):
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(end),
                host=settings.host,
                port=settings.port,
                http=inlet.HTTP,
                ws="none",
                log_config=None,  # uvicorn's lines take the form of ours
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        try:
            server.run()
        except KeyboardInterrupt:
            pass
        except SystemExit as asked:  # by the handler above, or by uvicorn where it cannot start
            return int(asked.code or 0)
    return status if server.started else 1


def leave(status: int) -> None:
    """End the process at once where a thread was left behind; else return, for it to end as usual.

    The record is closed by now. A device and the loading of a bundle have threads that are daemons, for whom nobody
    waits where they hang; but whatever runtime they hang in has threads of its own, and may be asked to clean up.
    """
    left = [thread.name for thread in threading.enumerate() if thread.name in MAY_HANG]
    if left:
        log.error("ends although threads still run", threads=left, status=status)
        logging.shutdown()
        os._exit(status)


@contextmanager
def _claimed(settings: Settings) -> Iterator[None]:
    """Port and folder are ours alone: found out at once, and not after a bundle was loaded for it."""
    _refuse_taken(settings.host, settings.port)
    with alone_in(settings.state_dir):
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else keeps a record in the folder, which is made, until the block ends.

    Raises:
        SettingsError: another service does, or it cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("a")
    except OSError as error:
        raise SettingsError(f"INSPECT_STATE_DIR: {folder} cannot be used: {error}") from error
    with lock:  # the system lets go of it however the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(
                f"INSPECT_STATE_DIR: another service keeps its record in {folder}: give each a folder of its own"
            ) from error
        except OSError as error:  # a file system without locks: nobody could tell whether the record is another's
            raise SettingsError(f"INSPECT_STATE_DIR: {folder} cannot be locked: {error}") from error
        yield


def _refuse_taken(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does: one just stopped is no hindrance
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(f"INSPECT_HOST, INSPECT_PORT: cannot listen on {host}:{port}: {error}") from error

"""How an app is served: uvicorn as a line needs it, and the status with which the process ends."""

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI

from service.settings import Settings, SettingsError

# a client's last screens are answered before the process ends
GRACE_S = 35
# longer than any takt: a line controller keeps its connection from one screen to the next
KEEP_ALIVE_S = 75

LOCK_FILE = "service.lock"  # in the folder of the record

# how a service ends that has lost a device for good: whatever supervises it starts a new process, which has it again
DEVICE_GONE = os.EX_TEMPFAIL


def serve(make_app: Callable[[Callable[[], None]], FastAPI], settings: Settings) -> int:
    """Serve until a signal, which ends the process by itself, or until a device is gone; the exit status.

    Args:
        make_app: makes the app, given what it is to call once a device is gone.
        settings: host, port and folder of the record.

    Raises:
        SettingsError: the port or the folder is another's, or cannot be used.
    """
    # whoever stops the service has asked for it: uvicorn ends by the signal that stopped it, which would be a failure
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
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
                log_config=None,  # uvicorn's lines take the form of ours
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        with suppress(KeyboardInterrupt):
            server.run()
    return status if server.started else 1


@contextmanager
def _claimed(settings: Settings) -> Iterator[None]:
    """Port and folder are ours alone: found out at once, and not after a bundle was loaded for it."""
    _refuse_taken(settings.host, settings.port)
    folder = settings.state_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("a")
    except OSError as error:
        raise SettingsError(f"INSPECT_STATE_DIR: {folder} cannot be used: {error}") from error
    with lock:  # the system lets go of it however the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(
                f"INSPECT_STATE_DIR: another service keeps its record in {folder}: give each a folder of its own"
            ) from error
        yield


def _refuse_taken(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does: one just stopped is no hindrance
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(f"INSPECT_HOST, INSPECT_PORT: cannot listen on {host}:{port}: {error}") from error

"""How an app is served: uvicorn as a line needs it, and the status with which the process ends."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from service.settings import Settings

# a client's last screens are answered before the process ends
GRACE_S = 35
# longer than any takt: a line controller keeps its connection from one screen to the next
KEEP_ALIVE_S = 75

# how a service ends that has lost a device for good: whatever supervises it starts a new process, which has it again
DEVICE_GONE = os.EX_TEMPFAIL


def serve(make_app: Callable[[Callable[[], None]], FastAPI], settings: Settings) -> int:
    """Serve until a signal, which ends the process by itself, or until a device is gone; the exit status.

    Args:
        make_app: makes the app, given what it is to call once a device is gone.
        settings: host and port.
    """
    # whoever stops the service has asked for it: uvicorn ends by the signal that stopped it, which would be a failure
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    status = 0

    def end() -> None:  # as a signal does: screens under way are answered
        nonlocal status
        status, server.should_exit = DEVICE_GONE, True

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

"""Real servers as processes of their own, for as long as a test needs them."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.client import ended

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0


@contextmanager
def server(
    command: Sequence[str], *, ready_url: str, log: Path, environment: Mapping[str, str] | None = None
) -> "Iterator[subprocess.Popen[bytes]]":
    """Run `command` until the block ends, from the moment that `ready_url` answers 2xx.

    Args:
        command: program and arguments.
        ready_url: what says that it serves.
        log: file for its output, shown when it does not start.
        environment: set besides the test's own.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            limit = time.monotonic() + READY_WITHIN_S
            while not _answers(ready_url):
                assert time.monotonic() < limit, f"{command[0]} is not ready:\n{log.read_text()}"
                assert not ended(process), f"{command[0]} ended:\n{log.read_text()}"
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False

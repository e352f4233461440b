"""The service as its clients see it: started as a process of its own, asked over HTTP. Knows nothing of its insides."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

READY_WITHIN_S = 120.0
ANSWER_WITHIN_S = 120.0
STOP_WITHIN_S = 75.0  # as compose has it: a screen has half of that, a device that hangs the rest
POLL_S = 0.1
PIECE_BYTES = 2**20
RAW = "application/octet-stream"


class ClientError(Exception):
    """The service could not be started or reached, or refused; the message says which."""


class Unreachable(ClientError):
    """Nothing listens at the service's address any more."""


@dataclass(frozen=True, slots=True)
class Served:
    """A service that is ready: a client of it, and the number of its process."""

    client: httpx.Client
    pid: int


@contextmanager
def serving(
    settings: Mapping[str, str], log_path: Path | None = None, *, module: Sequence[str] = ("service",)
) -> Iterator[Served]:
    """A service with an empty record on a free port, until the block ends.

    Args:
        settings: INSPECT_* variables beside those of this process.
        log_path: where its output is to stay; by default it goes with the block.
        module: which `python -m` runs, and its arguments.

    Raises:
        ClientError: it was not ready in time, ended by itself or with an error, or did not answer within the block; the
            message says where the log is, or how one that is gone ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = log_path or Path(folder) / "server.log"
        own = {"INSPECT_STATE_DIR": str(Path(folder) / "state")}
        try:
            with _process({**own, **settings}, log, module=module) as served:
                yield served
        except (ClientError, httpx.HTTPError) as error:
            told = f"see {log}" if log_path else f"the log ends: {log.read_text(errors='replace')[-500:]}"
            raise ClientError(f"{error}; {told}") from error


@contextmanager
def _process(settings: Mapping[str, str], log_path: Path, *, module: Sequence[str]) -> Iterator[Served]:
    port = free_port()
    environment = {**os.environ, "INSPECT_HOST": "127.0.0.1", "INSPECT_PORT": str(port), **settings}
    with log_path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *module], env=environment, stdout=log, stderr=log)  # noqa: S603 - our own
        try:
            # a proxy of the environment leads away from this machine
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_WITHIN_S, trust_env=False) as client:
                _wait_until_ready(process, client)
                yield Served(client, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if code != 0:
            raise ClientError(f"the service ended with exit code {code}")


def post_frame(client: httpx.Client, screen_id: str, frame: NDArray[np.uint8]) -> str:
    """Post one frame (H, W) as a line controller does, raw; the answer's JSON text.

    Raises:
        Unreachable: no connection.
        ClientError: no answer, or a problem document.
    """
    height, width = frame.shape
    return post_body(client, screen_id, frame.reshape(-1).data, media_type=RAW, width=width, height=height)


def post_body(client: httpx.Client, screen_id: str, body: memoryview | bytes, *, media_type: str, **size: int) -> str:
    """Post the bytes of one screen; the answer's JSON text.

    Args:
        client: of the service.
        screen_id: its name.
        body: a file, or pixels row by row.
        media_type: of the body.
        size: `width` and `height` of pixels.

    Raises:
        Unreachable: no connection.
        ClientError: no answer, or a problem document.
    """
    headers = {"content-type": media_type, "content-length": str(len(body))}
    return _post(client, screen_id, _pieces(body), headers, **size)


def post_pieces(client: httpx.Client, screen_id: str, pieces: Iterator[bytes], *, width: int, height: int) -> str:
    """Post a raw frame whose bytes come some at a time; the answer and the exceptions are those of `post_frame`."""
    return _post(client, screen_id, pieces, {"content-type": RAW}, width=width, height=height)


def _post(
    client: httpx.Client, screen_id: str, pieces: Iterator[bytes], headers: Mapping[str, str], **size: int
) -> str:
    try:
        response = client.post("/v1/screens", params={"screen_id": screen_id, **size}, headers=headers, content=pieces)
    except httpx.ConnectError as error:
        raise Unreachable(f"{screen_id}: no connection: {error}") from error
    except httpx.TransportError as error:
        raise ClientError(f"{screen_id}: no answer: {error}") from error
    if not response.is_success:
        raise ClientError(f"{screen_id}: {response.status_code} {response.text}")
    return response.text


def _pieces(body: memoryview | bytes) -> Iterator[bytes]:
    """The bytes, some at a time: of a body in one piece httpx copies the rest after each packet."""
    for start in range(0, len(body), PIECE_BYTES):
        yield bytes(body[start : start + PIECE_BYTES])


def ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether a process has ended, after a moment's wait."""
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def free_port() -> int:
    """A port of the loopback address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: "subprocess.Popen[bytes]", client: httpx.Client) -> None:
    limit = time.monotonic() + READY_WITHIN_S
    while not ended(process):
        try:
            response = client.get("/readyz")
            if response.is_success:
                return
            reason = response.text
        except httpx.TransportError as error:
            reason = str(error)
        if time.monotonic() > limit:
            raise ClientError(f"the service was not ready in {READY_WITHIN_S:.0f} s ({reason})")
    raise ClientError(f"the service ended with exit code {process.returncode}")

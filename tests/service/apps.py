"""Whole apps served over real HTTP on this machine, devices under a test's control, and a frame for each verdict."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import cv2
import httpx
import numpy as np
import structlog
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp
from structlog.testing import LogCapture
from structlog.typing import EventDict

from engine import NO_GUARD, FakeBackend, Golden, fake_manifest
from service import inlet
from service.app import create_app
from service.inspector import Forgetful, Inspector, Record
from service.room import Decoding
from service.scheduler import Scheduler
from service.settings import Settings
from tests.bundles import REACH, grey_of

# to `logging`, where pytest collects it; structlog's own default prints, and draws every local variable of a
# traceback, frames too, for seconds
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
)

WAIT_S = 20.0  # for what comes at once, unless something is broken
PATCH_PX = 64
SIZE = (128, 192)  # (height, width): 2 rows of 3 patches, a full batch and one more
GOLDEN_GREY = 7
CLEAN = (0.1, 0.1, 0.1, 0.1)

Frame = NDArray[np.uint8]


def frame(spot: int | None = None, *, size: tuple[int, int] = SIZE) -> Frame:
    """(H, W) of background, with a spot of this grey level in the first patch."""
    pixels = np.random.default_rng(3).integers(118, 139, size).astype(np.uint8)
    if spot is not None:
        pixels[20:26, 30:36] = spot
    return pixels


# what the tiny bundle says of each; a pixel half of REACH away from a label's level is in the review band
SCREENS = {"pass": frame(), "fail": frame(grey_of(0)), "review": frame(grey_of(1) + REACH // 2)}


def encoded(pixels: Frame, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def post(client: httpx.Client, screen_id: str, pixels: Frame, **query: str | float) -> httpx.Response:
    """Send a PNG file."""
    return client.post(
        "/v1/screens",
        params={"screen_id": screen_id, **query},
        content=encoded(pixels),
        headers={"content-type": "image/png"},
    )


def post_raw(client: httpx.Client, screen_id: str, pixels: Frame, **query: str | float) -> httpx.Response:
    """Send bare pixels, with the size that they have unless `query` says otherwise."""
    height, width = pixels.shape
    return client.post(
        "/v1/screens",
        params={"screen_id": screen_id, "width": width, "height": height, **query},
        content=pixels.tobytes(),
        headers={"content-type": "application/octet-stream"},
    )


def code_of(response: httpx.Response) -> str:
    """The code of a problem document, and that it is one."""
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == response.status_code
    assert document["type"].endswith(document["code"])
    code: str = document["code"]
    return code


def is_problem(response: httpx.Response, status: int, code: str) -> bool:
    return (response.status_code, code_of(response)) == (status, code)


def count(client: httpx.Client, series: str, /, **labels: str) -> float:
    """One sample of the service's metrics."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    (value,) = (s.value for family in families for s in family.samples if s.name == series and s.labels == labels)
    return float(value)


@contextmanager
def running(app: ASGIApp, **settings: Any) -> Iterator[tuple[str, int]]:  # noqa: ANN401 - of many types
    """Where the app listens, which runs in uvicorn, by its `settings`, until the block ends."""
    # the protocol is named for asyncio, which sends without delay only where it is
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # from here on a connection waits until the app takes it
        server = uvicorn.Server(uvicorn.Config(app, http=inlet.HTTP, log_config=None, access_log=False, **settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def serve(app: FastAPI, *, grace_s: int | None = None) -> Iterator[httpx.Client]:
    """A client of the app, which runs until the block ends, and `grace_s` longer where requests have not."""
    with running(app, lifespan="on", timeout_graceful_shutdown=grace_s) as (host, port):
        base_url = f"http://{host}:{port}"
        with httpx.Client(base_url=base_url, timeout=WAIT_S, trust_env=False) as client:
            yield client


class Gate:
    """A place that a device's thread comes by: open, or held; it tells who has come."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._arrivals = threading.Semaphore(0)

    def hold(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def forget_arrivals(self) -> None:
        """Count from now on."""
        self._arrivals = threading.Semaphore(0)

    def go_through(self) -> None:
        self._arrivals.release()
        assert self._open.wait(WAIT_S)

    def wait_for(self, arrivals: int = 1) -> None:
        """Wait until the thread has come by so many times more."""
        for _ in range(arrivals):
            assert self._arrivals.acquire(timeout=WAIT_S)


class Device:
    """What a fake device computes: the golden patches' known score, and `scores` for every patch of a screen.

    Attributes:
        scores: one a label.
        golden_score: what the golden patches give; 0.5 is right.
        failure: raised where a patch of a screen is computed.
        screen_gate: passed before each batch of a screen.
        golden_gate: passed before each self-test.
    """

    def __init__(self) -> None:
        self.scores = CLEAN
        self.golden_score = 0.5
        self.failure: Exception | None = None
        self.screen_gate = Gate()
        self.golden_gate = Gate()
        self.batches = 0

    def __call__(self, pixels: Frame) -> NDArray[np.float64]:
        if (pixels == GOLDEN_GREY).all():
            self.golden_gate.go_through()
            return np.full((len(pixels), len(CLEAN)), self.golden_score)
        self.screen_gate.go_through()
        self.batches += 1
        if self.failure is not None:
            raise self.failure
        return np.tile(self.scores, (len(pixels), 1))

    def backend(self, *, guard: Mapping[str, float] = NO_GUARD) -> FakeBackend:
        return FakeBackend(fake_manifest(patch_px=PATCH_PX), self, guard=guard)


GOLDEN = Golden(
    pixels=np.full((1, 1, PATCH_PX, PATCH_PX), GOLDEN_GREY, np.uint8),
    probability=np.full((1, len(CLEAN)), 0.5, np.float32),
    activation=np.zeros((1, len(CLEAN), 1, 1), np.float32),
    tolerance=1e-4,
)


@contextmanager
def serve_device(device: Device, settings: Settings) -> Iterator[httpx.Client]:
    """A client of an app on that device, ready unless its golden gate is held."""
    app = create_app(settings, backends=[device.backend()], golden=GOLDEN)
    with serve(app) as client:
        yield client


@contextmanager
def inspecting(
    device: Device,
    record: Record | None = None,
    *,
    frame_size: tuple[int, int] | None = None,
    clock: Callable[[], float] | None = None,
    decoding: Decoding | None = None,
) -> Iterator[Inspector]:
    """An inspector on that device, whose clock goes one second further at each look unless another is given."""
    backend = device.backend()
    seconds = itertools.count()
    with Scheduler([backend], GOLDEN, max_patches=100, self_test_interval_s=60) as scheduler:
        yield Inspector(
            backend,
            scheduler,
            record or Forgetful(),
            frame_size=frame_size,
            max_pixels=10**6,
            decoding=decoding,
            clock=clock or (lambda: float(next(seconds))),
        )


@contextmanager
def logged() -> Iterator[list[EventDict]]:
    """What is logged until the block ends; an app's last lines are there once it has stopped."""
    lines = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, lines])
    try:
        yield lines.entries
    finally:
        structlog.configure(processors=before)

"""A whole service in a process of its own whose device is lost for good, and what it does then."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from service.client import free_port
from service.server import DEVICE_GONE
from tests.deploy.processes import STOP_WITHIN_S, server
from tests.service.apps import SIZE, frame, is_problem, post

LOSING = 77  # a frame of this grey alone loses the device


# Python that serves on a fake device, with a place for more of it
SERVICE = f"""
import engine.fake
from engine import DeviceLost
from service.__main__ import run


def load_losable(bundle, *, load=engine.fake.load_fake, **options):
    backend = load(bundle, **options)
    features, lost = backend.features, []

    def losing(pixels, *, glance=True):
        if lost or (pixels == {LOSING}).all():
            lost.append(True)
            raise DeviceLost("an illegal memory access was encountered")
        return features(pixels)

    backend.features = losing
    return backend


engine.fake.load_fake = load_losable
{{more}}
run()
"""


def ends_by_itself(
    program: str,
    bundle: Path,
    home: Path,
    *,
    before: Callable[[str], object] = lambda address: None,
    **settings: str,
) -> list[dict[str, Any]]:
    """Hold a service to its end once a device is lost; the lines of its log.

    Args:
        program: Python that serves, on a device which a frame of the grey `LOSING` loses for good.
        bundle: to be served.
        home: folder for record, plans and log.
        before: what happens before the device is lost, given the service's address.
        settings: further variables of the environment.
    """
    address, log = f"http://127.0.0.1:{(port := free_port())}", home / "log"
    environment = {
        "INSPECT_PORT": str(port),
        "INSPECT_BUNDLE": str(bundle),
        "INSPECT_STATE_DIR": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"),
        **settings,
    }
    with (
        server(
            [sys.executable, "-c", program], ready_url=f"{address}/readyz", log=log, environment=environment
        ) as process,
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        assert post(client, "one", frame()).status_code == 200
        before(address)
        answer = post(client, "two", np.full(SIZE, LOSING, np.uint8))
        assert is_problem(answer, 500, "inference_failed")
        assert process.wait(STOP_WITHIN_S) == DEVICE_GONE == 75
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines if line["level"] == "critical"] == ["device lost for good"]
    assert any(line["event"].startswith("Finished server process") for line in lines)  # and not by a crash
    return lines

"""A bundle that hangs while it is loaded, in a whole service: it keeps neither an answer nor the end of the process."""

import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from service.client import free_port
from tests.deploy.processes import STOP_WITHIN_S, server
from tests.service.apps import WAIT_S, frame, is_problem, post
from tests.service.devices import until
from tests.service.losing import SERVICE, ends_by_itself
from tests.service.shelves import shelf

# as in a runtime, whose own threads the interpreter would wait for
HANGING = SERVICE.format(
    more="""
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import service.models
import service.server

service.server.GRACE_S = 1  # for the request that waits for the swap
service.models.PROVEN_WITHIN_S = {within_s}
load = engine.fake.load_fake


def hanging(bundle, **options):
    if bundle.name == "two":
        Path(os.environ["INSPECT_STATE_DIR"], "hangs").touch()
        ThreadPoolExecutor(1).submit(threading.Event().wait).result()
    return load(bundle, **options)


engine.fake.load_fake = hanging
"""
)
SWAP = {"bundle": "two", "without_release": True}


def begin_swap(address: str, *, mark: Path) -> None:
    """Ask for the bundle that hangs, and leave the question open once it does."""

    def ask() -> None:
        with suppress(httpx.TransportError):
            httpx.put(f"{address}/v1/models/active", json=SWAP, timeout=WAIT_S, trust_env=False)

    threading.Thread(target=ask, daemon=True).start()
    until(mark.exists)
    assert is_problem(httpx.put(f"{address}/v1/models/active", json=SWAP), 409, "swap_in_progress")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shelf(tmp_path / "bundles")


def test_a_process_whose_device_is_gone_ends_though_a_load_hangs(folder: Path, tmp_path: Path) -> None:
    lines = ends_by_itself(
        HANGING.format(within_s=300),
        folder / "one",
        tmp_path,
        before=partial(begin_swap, mark=tmp_path / "state" / "hangs"),
        INSPECT_BUNDLES=str(folder),
        INSPECT_RUNTIME="fake",
    )
    (line,) = (line for line in lines if line["event"] == "ends although threads still run")
    assert (line["threads"], line["status"]) == (["attempt"], 75)


@pytest.mark.parametrize("within_s", [300, 0.1])  # while it is waited for, and after it was left
def test_a_process_that_is_told_to_stop_does_though_a_load_hangs(folder: Path, tmp_path: Path, within_s: float) -> None:
    address = f"http://127.0.0.1:{(port := free_port())}"
    environment = {
        "INSPECT_PORT": str(port),
        "INSPECT_BUNDLE": str(folder / "one"),
        "INSPECT_BUNDLES": str(folder),
        "INSPECT_STATE_DIR": str(tmp_path / "state"),
        "INSPECT_RUNTIME": "fake",
    }
    with (
        server(
            [sys.executable, "-c", HANGING.format(within_s=within_s)],
            ready_url=f"{address}/readyz",
            log=tmp_path / "log",
            environment=environment,
        ) as process,
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        if within_s < 1:
            for _ in range(2):  # neither is held up by the one before
                assert is_problem(client.put("/v1/models/active", json=SWAP), 422, "bundle_refused")
            third = client.put("/v1/models/active", json=SWAP)  # each would hold another bundle
            assert is_problem(third, 409, "swap_in_progress")
            assert "restart" in third.json()["detail"]
        else:
            begin_swap(address, mark=tmp_path / "state" / "hangs")
        assert post(client, "one", frame()).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_WITHIN_S) == 0

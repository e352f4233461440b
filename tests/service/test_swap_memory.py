"""What a swap leaves in memory: nothing of the bundle that was left, counted and weighed."""

import gc
import itertools
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from engine import Backend
from service.app import create_app
from service.client import free_port
from service.serving import Loaded, load_bundle
from service.settings import Settings
from tests.bundles import tiny_bundle
from tests.deploy.processes import server
from tests.service.apps import frame, post_raw
from tests.service.shelves import shelf

SWAPS = 20
# screens under way move each figure by 5 MiB, so that the least of five neighbours is compared. That grew by 0.7 to
# 2.5 MiB over the swaps in nine runs on two busy cores, and once by 5.0; a bundle that stayed weighs 30 MiB, so that
# the end would be 540 above
NEIGHBOURS = 5
MARGIN_MIB = 10.0
PATCH_PX = 256


def resident_mib(process_id: int) -> float:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process_id}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory as Linux tells it")
def test_memory_after_20_swaps_under_load_is_that_after_2(tmp_path: Path) -> None:
    for name, gain in (("one", 20.0), ("two", 12.0)):
        tiny_bundle(tmp_path / "bundles" / name, patch_px=PATCH_PX, gain=gain, version=name)
    port = free_port()
    environment = {
        "INSPECT_PORT": str(port),
        "INSPECT_BUNDLE": str(tmp_path / "bundles" / "one"),
        "INSPECT_BUNDLES": str(tmp_path / "bundles"),
        "INSPECT_STATE_DIR": str(tmp_path / "state"),
    }
    address = f"http://127.0.0.1:{port}"
    pixels, numbers, done = frame(size=(512, 512)), itertools.count(), threading.Event()
    statuses: list[int] = []
    held_mib: list[float] = []
    with (
        server(
            [sys.executable, "-m", "service"],
            ready_url=f"{address}/readyz",
            log=tmp_path / "log",
            environment=environment,
        ) as process,
        httpx.Client(base_url=address, timeout=60, trust_env=False) as client,
        ThreadPoolExecutor(2) as pool,
    ):

        def send_until_done() -> None:
            while not done.is_set():
                statuses.append(post_raw(client, f"screen-{next(numbers)}", pixels).status_code)

        senders = [pool.submit(send_until_done) for _ in range(2)]
        try:
            for swap in range(SWAPS):
                answer = client.put(
                    "/v1/models/active", json={"bundle": ("two", "one")[swap % 2], "without_release": True}
                )
                assert answer.status_code == 200, answer.text
                held_mib.append(resident_mib(process.pid))
        finally:
            done.set()
        for sender in senders:
            sender.result()
    assert len(statuses) > SWAPS
    assert set(statuses) == {200}
    # the first swap makes what the process needs from then on
    assert min(held_mib[-NEIGHBOURS:]) - min(held_mib[1 : 1 + NEIGHBOURS]) < MARGIN_MIB, held_mib


def test_nothing_holds_a_bundle_that_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shelf(tmp_path / "bundles")
    settings = Settings(
        bundle=folder / "one", bundles=folder, state_dir=tmp_path / "state", runtime="onnxruntime", threads=1
    )
    backends: list[weakref.ref[Backend]] = []

    def remember(path: Path, settings: Settings, **options: Any) -> Loaded:  # noqa: ANN401
        loaded = load_bundle(path, settings, **options)
        backends.append(weakref.ref(loaded.backends[0]))
        return loaded

    for module in ("restart", "models"):
        monkeypatch.setattr(f"service.{module}.load_bundle", remember)
    app = create_app(settings)

    async def swap() -> None:
        async with app.router.lifespan_context(app) as state:
            models = dict(state or {})["running"].models
            for number in range(6):
                left = weakref.ref(models.current), weakref.ref(models.current.scheduler), backends[-1]
                models.activate("one" if number % 2 else "two", without_release=True)
                assert [held() for held in left] == [None, None, None]

    gc.disable()  # what only a collection finds would lie about until then
    try:
        anyio.run(swap)
    finally:
        gc.enable()

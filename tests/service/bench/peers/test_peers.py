"""The part `peers` of the bench: what it claims, and that it runs with the peers that are installed."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from engine import Glance
from service.bench import peers
from service.bench.peers import Found, Peer, ahead, fastest
from service.bench.peers.setting import Setting
from service.bench.report import BenchError
from service.bench.work import Work
from service.client import Served
from service.traffic import Traffic
from tests.bundles import BACKGROUND, grey_of, tiny_bundle

OUTCOME = [("pass", frozenset[str]())]


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


@pytest.fixture
def work(tmp_path: Path) -> Work:
    clean = np.random.default_rng(0).integers(BACKGROUND - 9, BACKGROUND + 10, (192, 128)).astype(np.uint8)
    broken = clean.copy()
    broken[10:30, 70:90] = grey_of(2)
    return Work(bundle=tiny_bundle(tmp_path / "bundle"), frames=[clean, broken], seconds=1.0)


def found(client: httpx.Client, durations: list[float], elapsed_s: float) -> Found:
    traffic = Traffic(Served(client, 0), [])
    traffic.durations, traffic.elapsed_s = durations, elapsed_s
    return Found(traffic=traffic, peak_bytes=2**20, verdicts=OUTCOME)


def only(name: str, *settings: Setting) -> list[Peer]:
    (peer,) = (peer for peer in peers.peers(1) if peer.package == name)
    return [Peer(**{**{field: getattr(peer, field) for field in Peer.__slots__}, "settings": settings})]


@pytest.mark.parametrize(("ours", "passed"), [(125, True), (124, False)])
def test_we_are_ahead_of_the_quickest_by_a_quarter(client: httpx.Client, ours: int, passed: bool) -> None:
    others = {"slow": found(client, [0.1] * 50, 10.0), "quick": found(client, [0.1] * 100, 10.0)}
    rate, _ = ahead("ours", found(client, [0.1] * ours, 10.0), others)
    assert (rate.passed, rate.figures["best"]) == (passed, "quick")


@pytest.mark.parametrize(("ours_s", "passed"), [(0.4, True), (0.41, False)])
def test_our_p99_is_held_against_the_lowest(client: httpx.Client, ours_s: float, passed: bool) -> None:
    others = {"quick": found(client, [0.5] * 100, 10.0), "steady": found(client, [0.4] * 50, 10.0)}
    _, wait = ahead("ours", found(client, [ours_s] * 200, 10.0), others)
    assert (wait.passed, wait.figures["best"]) == (passed, "steady")


def test_nothing_is_claimed_where_no_peer_ran(client: httpx.Client) -> None:
    assert list(ahead("ours", found(client, [0.1], 1.0), {})) == []


def test_the_fastest_setting_is_taken_and_one_that_does_not_run_is_not(
    work: Work, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {1: 10, 2: 30, 3: 20}
    tried: list[int] = []

    class Server:
        def __init__(self, _: Work, __: object, environment: Mapping[str, str]) -> None:
            self.patches = int(environment["PEER_PATCHES"])

        def __enter__(self) -> Served:
            tried.append(self.patches)
            if self.patches not in rates:
                raise BenchError("not ready")
            return Served(client, self.patches)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(peers, "_served", Server)
    monkeypatch.setattr(peers, "_verdicts", lambda *_: OUTCOME)
    monkeypatch.setattr(peers, "_loaded", lambda served, *_: found(client, [0.1] * rates[served.pid], 1.0).traffic)
    (peer,) = only("fastapi", *(Setting(patches=patches) for patches in (1, 2, 3, 4)))
    setting, trials = fastest(work, peer)
    assert tried == [1, 2, 3, 4]
    assert setting.patches == 2
    assert list(trials.values()) == [10, 30, 20]
    rates.clear()
    with pytest.raises(BenchError, match="not ready"):
        fastest(work, peer)


def test_the_part_runs_and_a_peer_that_is_not_installed_is_said(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = only("fastapi", Setting())
    absent = Peer(name="Absent", module="absent", package="no_such_package", settings=[Setting()], environment={})
    broken = Peer(name="Broken", module="no.such.module", package="fastapi", settings=[Setting()], environment={})
    monkeypatch.setattr(peers, "peers", lambda _: [*loop, absent, broken])
    rows = {row.name: row for row in peers.measure(work)}
    assert list(rows) == [
        "ours, default runtime",
        "ours, ONNX Runtime",
        "default runtime, times ONNX Runtime",
        "FastAPI and a loop",
        "Absent",
        "Broken",
        "ours, ONNX Runtime, times the best peer's screens/s",
        "ours, ONNX Runtime, times the best peer's p99",
        "ours, default runtime, times the best peer's screens/s",
        "ours, default runtime, times the best peer's p99",
    ]
    for name in ("ours, ONNX Runtime", "FastAPI and a loop"):
        assert rows[name].passed, rows[name].found
        assert rows[name].figures["screens_per_s"] > 0
        assert rows[name].figures["peak_bytes"] > 2**24
    assert rows["FastAPI and a loop"].figures["equal_verdicts"] == 2
    assert rows["Absent"].passed is None
    assert "no_such_package is not installed" in rows["Absent"].found
    assert rows["Broken"].passed is False


def test_ours_is_measured_after_a_glance_too_where_the_bundle_has_one(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = only("fastapi", Setting())
    monkeypatch.setattr(peers, "peers", lambda _: loop)
    glancing = tiny_bundle(tmp_path / "glancing", glance=Glance(doubt_min=0.1))
    rows = {row.name: row for row in peers.measure(replace(work, bundle=glancing, seconds=0.5))}
    ours = rows["ours, ONNX Runtime after a glance"]
    assert ours.passed, ours.found
    assert (ours.figures["equal_verdicts"], "setting" in ours.figures) == (2, False)
    assert rows["FastAPI and a loop"].figures["equal_verdicts"] == 2
    assert rows["ours, ONNX Runtime after a glance, times the best peer's screens/s"].figures["ratio"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_the_command_measures_all_that_are_installed() -> None:
    command = [sys.executable, "-m", "service", "bench", "--part", "peers", "--seconds", "2", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert answer.returncode in (0, 1), answer.stderr
    rows = {row["name"]: row for row in json.loads(answer.stdout)["rows"]}
    assert rows["FastAPI and a loop"]["passed"]
    for peer in peers.peers(2):
        if peer.installed:
            assert rows[peer.name]["figures"]["equal_verdicts"] == 6, rows[peer.name]

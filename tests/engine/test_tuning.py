import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import engine.tuning
from engine import Features
from engine.tuning import BUDGET_S, Run, Share, Tuning, reference, shares, tune


class Machine:
    """A clock that runs by what a batch takes with a given share, and answers that may differ by it."""

    def __init__(self, batch_s: dict[str, float], *, other_bits: Sequence[str] = ()) -> None:
        self.now = 0.0
        self.built: list[str] = []
        self.alive: list[weakref.ref[Run]] = []
        self._batch_s = batch_s
        self._other_bits = other_bits

    def clock(self) -> float:
        return self.now

    def build(self, share: Share) -> Run:
        assert [alive for alive in self.alive if alive() is not None] == []  # one graph at a time
        self.built.append(str(share))
        no_map = np.zeros((1, 1, 1, 1), np.float32)

        def run(pixels: NDArray[np.uint8]) -> Features:
            self.now += self._batch_s[str(share)]
            answer = np.float32(0.1) + pixels[:, 0, 0, 0].astype(np.float32)
            if str(share) in self._other_bits:
                answer = np.nextafter(answer, np.float32(1e9))
            return Features(label_features=answer[:, None, None], stage1=answer[:, None], activation=no_map)

        self.alive.append(weakref.ref(run))
        return run


def tuned(machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch, *, cpus: int, patches: int) -> str:
    monkeypatch.setattr(engine.tuning, "available_cpus", lambda: cpus)
    return str(tune(machine.build, bundle, threads=None, patches=patches, clock=machine.clock).share)


@given(cpus=st.integers(1, 200), patches=st.integers(1, 50))
def test_no_share_has_more_threads_than_there_are_cpus(cpus: int, patches: int) -> None:
    tried = list(shares(cpus, patches=patches))
    assert tried[0] == reference(cpus, patches=patches)
    assert Share(streams=1, threads=1) in tried
    assert len(set(tried)) == len(tried)
    for share in tried:
        assert 1 <= share.total <= cpus
        assert 1 <= share.streams <= patches


def test_the_fastest_share_is_taken(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"2 x 1": 0.02, "1 x 2": 0.01, "1 x 1": 0.04})
    assert tuned(machine, bundle, monkeypatch, cpus=2, patches=5) == "1 x 2"


def test_a_share_with_other_bits_is_not_taken_however_fast(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"2 x 1": 0.02, "1 x 2": 0.001, "1 x 1": 0.04}, other_bits=["1 x 2"])
    assert tuned(machine, bundle, monkeypatch, cpus=2, patches=5) == "2 x 1"


def test_of_equally_fast_shares_the_one_with_fewest_threads_is_taken(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine({"2 x 1": 0.0200, "1 x 2": 0.0201, "1 x 1": 0.0205})
    assert tuned(machine, bundle, monkeypatch, cpus=2, patches=5) == "1 x 1"


def test_the_time_is_bounded_and_a_slow_network_keeps_the_reference(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares_of_16 = [str(share) for share in shares(16, patches=5)]
    slow = Machine(dict.fromkeys(shares_of_16, 2 * BUDGET_S))
    assert tuned(slow, bundle, monkeypatch, cpus=16, patches=5) == "5 x 3"
    assert slow.built == ["5 x 3"]
    usual = Machine(dict.fromkeys(shares_of_16, BUDGET_S / 60))
    tuned(usual, bundle, monkeypatch, cpus=16, patches=5)
    assert usual.built == shares_of_16
    assert usual.now <= BUDGET_S * 1.2


def test_nothing_is_measured_where_there_is_nothing_to_choose(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({})
    assert tuned(machine, bundle, monkeypatch, cpus=1, patches=5) == "1 x 1"
    assert str(tune(machine.build, bundle, threads=8, patches=5).share) == "5 x 1"
    assert machine.built == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_backend_says_what_it_chose_and_why(bundle: Path, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    pytest.importorskip(f"engine.{runtime}")
    monkeypatch.setattr(engine.tuning, "available_cpus", lambda: 2)
    backend = engine.load(bundle, runtime)
    tuning: Tuning = vars(backend)["tuned"]  # of the CPU's backends alone
    backend.close()
    assert [str(trial.share) for trial in tuning.trials] == ["2 x 1", "1 x 2", "1 x 1"]
    assert tuning.trials[0].same_bits
    assert all(trial.batch_s > 0 for trial in tuning.trials)
    assert tuning.share in [trial.share for trial in tuning.trials if trial.same_bits]

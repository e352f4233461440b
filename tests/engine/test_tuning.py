import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine
from engine import Batch, Features
from engine.batches import Batches
from engine.tuning import BATCHES, TRIAL_S, Conditions, Share, Tuning, reference, tune


class Machine:
    """A clock that runs by what a batch takes with a given share, and answers that may differ by it.

    A batch that nothing else is under way with takes `alone` times as long.
    """

    def __init__(
        self, batch_s: dict[str, float], *, other_bits: Sequence[str] = (), alone: Mapping[str, float] | None = None
    ) -> None:
        self.now = 0.0
        self.built: list[str] = []
        self.alive: list[weakref.ref[Callable[[Batch], Callable[[], Features]]]] = []
        self._batch_s = batch_s
        self._other_bits = other_bits
        self._alone = alone or {}

    def clock(self) -> float:
        return self.now

    def build(self, share: Share) -> Batches:
        assert [alive for alive in self.alive if alive() is not None] == []  # one graph at a time
        self.built.append(str(share))
        no_map = np.zeros((1, 1, 1, 1), np.float32)
        under_way: list[dict[str, bool]] = []

        def begin(batch: Batch) -> Callable[[], Features]:
            mine = {"alone": not under_way}
            for other in under_way:
                other["alone"] = False
            under_way.append(mine)

            def wait() -> Features:
                under_way.remove(mine)
                self.now += self._batch_s[str(share)] * (self._alone.get(str(share), 1.0) if mine["alone"] else 1.0)
                answer = np.float32(0.1) + batch.pixels[:, 0, 0, 0].astype(np.float32)
                if str(share) in self._other_bits:
                    answer = np.nextafter(answer, np.float32(1e9))
                return Features(
                    label_features=answer[:, None, None],
                    stage1=answer[:, None],
                    activation=no_map,
                    doubt=np.ones(len(answer), np.float32),
                )

            return wait

        self.alive.append(weakref.ref(begin))
        return Batches(begin=begin)


def conditions(cpus: int, patches: int = 5, **other: str) -> Conditions:
    facts = {"runtime": "onnxruntime", "precision": "fp32", **other}
    return Conditions(**facts, cpus=cpus, patches=patches, glance=False)


def tuned(machine: Machine, bundle: Path, *, cpus: int, patches: int = 5, beside: Tuning | None = None) -> str:
    there = conditions(cpus, patches)
    return str(tune(machine.build, bundle, there, beside=beside, clock=machine.clock).share)


@given(cpus=st.integers(1, 200), patches=st.integers(1, 50))
def test_the_reference_leaves_no_cpu_idle_and_no_stream_without_a_patch(cpus: int, patches: int) -> None:
    share = reference(cpus, patches=patches)
    assert share.total == cpus
    assert share.streams <= patches
    if cpus <= patches:
        assert share.streams == cpus


@pytest.mark.parametrize(
    ("cpus", "share"),
    [(1, "1 x 1"), (2, "2 x 1"), (4, "4 x 1"), (5, "5 x 1"), (7, "1 x 7"), (8, "4 x 2"), (12, "4 x 3"), (14, "2 x 7")],
)
def test_the_reference_runs_as_many_of_five_patches_as_share_out_the_cpus(cpus: int, share: str) -> None:
    assert str(reference(cpus, patches=5)) == share


def test_the_fastest_share_is_taken(bundle: Path) -> None:
    machine = Machine({"2 x 1": 0.02, "1 x 2": 0.01})
    assert tuned(machine, bundle, cpus=2) == "1 x 2"


def test_a_share_that_is_only_faster_batch_by_batch_is_not_taken(bundle: Path) -> None:
    machine = Machine({"2 x 1": 0.010, "1 x 2": 0.011}, alone={"2 x 1": 1.2})  # whose second stream then waits
    assert tuned(machine, bundle, cpus=2) == "2 x 1"


def test_a_share_with_other_bits_is_not_taken_however_fast(bundle: Path) -> None:
    machine = Machine({"2 x 1": 0.02, "1 x 2": 0.001}, other_bits=["1 x 2"])
    assert tuned(machine, bundle, cpus=2) == "2 x 1"


def test_of_equally_fast_shares_the_reference_is_taken(bundle: Path) -> None:
    machine = Machine({"2 x 1": 0.0201, "1 x 2": 0.0200})
    assert tuned(machine, bundle, cpus=2) == "2 x 1"


@pytest.mark.parametrize(("cpus", "patches"), [(2, 5), (3, 5), (8, 5), (16, 5), (16, 50), (4, 1)])
def test_no_share_that_leaves_cpus_idle_is_tried_however_busy_they_are(bundle: Path, cpus: int, patches: int) -> None:
    class Contended(dict[str, float]):
        """Something else holds all CPUs but one, so that all shares look alike, and those of one thread no worse."""

        def __missing__(self, share: str) -> float:
            return 0.02 if share.startswith("1 x") else 0.021

    machine = Machine(Contended())
    taken = tuned(machine, bundle, cpus=cpus, patches=patches)
    assert set(machine.built) <= {str(reference(cpus, patches=patches)), f"1 x {cpus}"}
    streams, threads = map(int, taken.split(" x "))
    assert streams * threads == cpus


def test_a_share_that_only_looked_faster_while_the_reference_was_disturbed_is_not_taken(bundle: Path) -> None:
    class Disturbed(dict[str, float]):
        def __getitem__(self, share: str) -> float:
            return 0.1 if machine.built == ["2 x 1"] else {"2 x 1": 0.01, "1 x 2": 0.02}[share]

    machine = Machine(Disturbed())
    assert tuned(machine, bundle, cpus=2) == "2 x 1"
    assert machine.built == ["2 x 1", "1 x 2", "2 x 1"]


@pytest.mark.parametrize("disturbed", [1, 2, 3])
def test_a_batch_that_something_held_up_is_not_what_is_compared(bundle: Path, disturbed: int) -> None:
    """The first of a share, which nothing is judged by, or, where the reference is tried again, one alone."""

    class HeldUp(dict[str, float]):
        def __getitem__(self, share: str) -> float:
            built = len(machine.built)
            answered[built] = answered.get(built, 0) + 1
            held_up = built == disturbed and answered[built] <= (1 if built == 1 else 2)
            return 2 * TRIAL_S if held_up else {"2 x 1": 0.010, "1 x 2": 0.009}[share]

    answered: dict[int, int] = {}
    machine = Machine(HeldUp())
    assert tuned(machine, bundle, cpus=2) == "1 x 2"


def test_the_time_is_bounded_and_a_slow_network_keeps_the_reference(bundle: Path) -> None:
    both = ["4 x 4", "1 x 16"]
    slow = Machine(dict.fromkeys(both, 2 * TRIAL_S))
    assert tuned(slow, bundle, cpus=16) == "4 x 4"
    assert slow.built == ["4 x 4"]
    usual = Machine(dict.fromkeys(both, TRIAL_S / 10))
    tuned(usual, bundle, cpus=16)
    assert usual.built == both
    assert usual.now <= 2 * (TRIAL_S + (2 + BATCHES) * TRIAL_S / 10)  # two batches alone, and a run that had begun


def test_nothing_is_measured_where_there_is_nothing_to_choose(bundle: Path) -> None:
    machine = Machine({})
    assert tuned(machine, bundle, cpus=1) == "1 x 1"
    assert tuned(machine, bundle, cpus=8, patches=1) == "1 x 8"
    assert str(tune(machine.build, bundle, conditions(2), threads=8).share) == "4 x 2"
    assert machine.built == []


def in_service(share: str, there: Conditions) -> Tuning:
    streams, threads = map(int, share.split(" x "))
    return Tuning(share=Share(streams=streams, threads=threads), conditions=there)


@pytest.mark.parametrize(("share", "built"), [("2 x 1", []), ("1 x 2", ["2 x 1", "1 x 2"])])
def test_beside_a_bundle_in_service_its_share_is_taken_whatever_the_times(
    bundle: Path, share: str, built: list[str]
) -> None:
    other = {"2 x 1": "1 x 2", "1 x 2": "2 x 1"}[share]
    machine = Machine({share: 2 * TRIAL_S, other: 0.001})
    assert tuned(machine, bundle, cpus=2, beside=in_service(share, conditions(2))) == share
    assert machine.built == built  # the reference for its bits alone


def test_a_share_in_service_that_gives_this_bundle_other_bits_is_not_taken(bundle: Path) -> None:
    machine = Machine({"2 x 1": 0.02, "1 x 2": 0.001}, other_bits=["1 x 2"])
    assert tuned(machine, bundle, cpus=2, beside=in_service("1 x 2", conditions(2))) == "2 x 1"


@pytest.mark.parametrize(
    "other", [conditions(4), conditions(2, 3), conditions(2, runtime="openvino"), conditions(2, precision="int8")]
)
def test_a_share_in_service_under_other_conditions_decides_nothing(bundle: Path, other: Conditions) -> None:
    machine = Machine({"2 x 1": 0.001, "1 x 2": 0.02})
    assert tuned(machine, bundle, cpus=2, beside=in_service("1 x 2", other)) == "2 x 1"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_backend_says_what_it_chose_and_why(bundle: Path, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    pytest.importorskip(f"engine.{runtime}")
    monkeypatch.setattr("engine.cpu.available_cpus", lambda: 2)
    backend = engine.load(bundle, runtime)
    tuning: Tuning = vars(backend)["tuned"]  # of the CPU's backends alone
    backend.close()
    assert [str(trial.share) for trial in tuning.trials][:2] == ["2 x 1", "1 x 2"]
    assert tuning.trials[0].same_bits
    assert all(trial.batch_s > 0 for trial in tuning.trials)
    assert tuning.share in [trial.share for trial in tuning.trials if trial.same_bits]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("share", ["2 x 1", "1 x 2"])
def test_a_backend_takes_the_share_of_the_one_in_service(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, share: str
) -> None:
    pytest.importorskip(f"engine.{runtime}")
    monkeypatch.setattr("engine.cpu.available_cpus", lambda: 2)
    beside = in_service(share, conditions(2, runtime=runtime))
    backend = engine.load(bundle, runtime, beside=beside)
    backend.close()
    assert str(vars(backend)["tuned"].share) == share

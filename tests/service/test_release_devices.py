"""What the release gate finds on the devices themselves, on ones that are uneven, not finite, or differ."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import NO_GUARD, RELEASE_FILE, FakeBackend, Manifest, read_golden
from service import release as gate
from service.released import Device
from tests.bundles import LABELS, probability_of, tiny_bundle
from tests.service.test_release import settings, write_set

Spoil = Callable[[NDArray[np.uint8], NDArray[np.float64]], None]


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "candidate")


def alone(pixels: NDArray[np.uint8], labels: int) -> NDArray[np.float32]:
    """A module whose patches know nothing of their neighbours, as those of a fake backend; (K, labels)."""
    return np.concatenate([probability_of(patch[None], labels) for patch in pixels])


def without_maps(pixels: NDArray[np.uint8], labels: int) -> NDArray[np.float32]:
    """A fake backend has none."""
    return np.zeros((len(pixels), labels, 1, 1), np.float32)


def on_devices(monkeypatch: pytest.MonkeyPatch, *devices: tuple[Spoil, Mapping[str, float]]) -> None:
    """Let bundles be loaded on devices that compute `alone` and get some patches wrong, each with its guard band."""

    def load_all(bundle: Path, *_: object, **__: object) -> list[FakeBackend]:
        golden = read_golden(bundle)
        known = {patch.tobytes(): row for patch, row in zip(golden.pixels, golden.probability, strict=True)}

        def device(spoil: Spoil, guard: Mapping[str, float]) -> FakeBackend:
            def scores(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
                rows = zip(pixels, alone(pixels, golden.probability.shape[1]), strict=True)
                found = np.array([known.get(patch.tobytes(), row) for patch, row in rows], np.float64)
                spoil(pixels, found)
                return found

            return FakeBackend(Manifest.read(bundle), scores, guard=guard)

        return [device(spoil, guard) for spoil, guard in devices]

    monkeypatch.setattr("service.serving.load_all", load_all)


def uneven(label: int | slice, step: float = 0.01) -> Spoil:
    """A black patch scores more with each slot of the batch, by five slots four steps more."""

    def spoil(pixels: NDArray[np.uint8], scores: NDArray[np.float64]) -> None:
        for slot, patch in enumerate(pixels):
            if not patch.any():
                scores[slot, label] += step * slot

    return spoil


def not_finite_on_white(pixels: NDArray[np.uint8], scores: NDArray[np.float64]) -> None:
    scores[(pixels == 255).all((1, 2, 3))] = np.nan


def sound(pixels: NDArray[np.uint8], scores: NDArray[np.float64]) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "refusals"),
    [
        (sound, []),
        (uneven(slice(None)), ["beyond the guard band", "tolerance"]),
        (not_finite_on_white, ["beyond the guard band", "tolerance", "finite"]),
    ],
)
def test_a_device_that_is_uneven_or_not_finite_is_refused_though_every_verdict_is_right(
    tmp_path: Path, candidate: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, refusals: list[str]
) -> None:
    golden = write_set(tmp_path / "golden", candidate, alone, without_maps)
    on_devices(monkeypatch, (spoil, NO_GUARD))
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert (found.runs_as.runtime, found.different) == ("fake", [])
    assert len(found.refusals) == len(refusals)
    assert all(word in refusal for word, refusal in zip(refusals, found.refusals, strict=True))
    assert (candidate / RELEASE_FILE).exists() == (not refusals)


@pytest.mark.parametrize(
    ("spread", "guard", "words"),
    [
        (0.01, 0.01, []),
        (0.0, 0.02, []),
        (0.02, 0.01, ["beyond the guard band: bubble by 0.02"]),
        # a guard band that was measured wider before is what screens are judged with
        (
            0.01,
            0.03,
            ["by more than the 0.02 that the bundle's parity tolerance allows: bubble by 0.01 (guard band 0.03)"],
        ),
        (0.4, 0.4, ["by more than the 0.02 that the bundle's parity tolerance allows: bubble by 0.4 (guard band 0.4)"]),
        (float("nan"), 0.01, ["beyond the guard band: bubble by nan", "by more than the 0.02"]),
    ],
)
def test_a_score_moves_with_its_slot_within_the_guard_band_and_that_is_within_the_tolerance(
    spread: float, guard: float, words: list[str]
) -> None:
    device = Device(slot_spread={"bubble": spread, "scratch": 0.0}, guard={"bubble": guard}, finite=True)
    refusals = list(device.refusals(0.02))
    assert len(refusals) == len(words)
    assert all(word in refusal for word, refusal in zip(words, refusals, strict=True))


def test_a_plan_that_would_send_every_screen_to_review_is_refused(
    tmp_path: Path, candidate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guard band is its spread, and by that guard band the verdicts are the module's."""
    golden = write_set(tmp_path / "golden", candidate, alone, without_maps)
    on_devices(monkeypatch, (uneven(0, 0.1), {"bubble": 0.4001}))
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert found.different == []
    assert found.refusals == [
        "device 0: a score moves with the slot of its patch by more than the 1e-05 that the bundle's parity tolerance "
        "allows: bubble by 0.4 (guard band 0.4)"
    ]
    assert not (candidate / RELEASE_FILE).exists()


@pytest.mark.parametrize(
    ("uneven_labels", "refused"),
    # each moves the label for which it has a guard band; each that for which the other one has it
    [((0, 1), []), ((1, 0), ["device 0: .*: pinhole by 0.04", "device 1: .*: bubble by 0.04"])],
)
def test_each_device_is_held_against_its_own_guard_band_and_so_are_its_screens(
    tmp_path: Path, candidate: Path, monkeypatch: pytest.MonkeyPatch, uneven_labels: tuple[int, int], refused: list[str]
) -> None:
    replace(Manifest.read(candidate), parity_tolerance={"fp32": 0.3}).write(candidate)
    golden = write_set(tmp_path / "golden", candidate, alone, without_maps)
    # of 0.3 around the review band from 0.3 to 0.7: on either device every screen is doubtful, and without it is none
    guards = [{label: 0.3 if label == wide else 0.0 for label in LABELS} for wide in ("bubble", "pinhole")]
    on_devices(monkeypatch, *((uneven(label), guard) for label, guard in zip(uneven_labels, guards, strict=True)))
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert found.different == []
    assert (found.tally.escape.count, found.tally.overkill.count) == (0, 0)
    assert [device.guard for device in found.devices] == guards
    assert len(found.refusals) == len(refused)
    assert all(re.match(words, refusal) for words, refusal in zip(refused, found.refusals, strict=True))

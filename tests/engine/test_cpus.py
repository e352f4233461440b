import os
from pathlib import Path

import pytest

from engine import cpus
from engine.cpus import available_cpus, held_to, openvino_vectors


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("cpu_max", "count"),
    [
        ("max 100000\n", 8),  # no limit
        ("200000 100000\n", 2),  # --cpus=2
        ("250000 100000\n", 2),  # rounded down
        ("50000 100000\n", 1),  # never none
        ("3200000 100000\n", 8),  # more than there are
        ("30000 10000\n", 3),  # another period
    ],
)
def test_a_quota_bounds_the_affinity(tmp_path: Path, cpu_max: str, count: int) -> None:
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert available_cpus(tmp_path) == count


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("quota", "period", "count"),
    [
        ("-1\n", "100000\n", 8),  # no limit
        ("200000\n", "100000\n", 2),
        ("250000\n", "100000\n", 2),  # rounded down
        ("50000\n", "100000\n", 1),  # never none
        ("3200000\n", "100000\n", 8),  # more than there are
    ],
)
def test_a_quota_of_the_first_version_of_control_groups_counts_too(
    tmp_path: Path, quota: str, period: str, count: int
) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    assert available_cpus(tmp_path) == 8  # a quota of an unknown period is none
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(period)
    assert available_cpus(tmp_path) == count


@pytest.mark.usefixtures("eight_cpus")
def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == 8


def test_on_this_machine_there_is_at_least_one() -> None:
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("held", "left"),
    [
        ("", ["avx2", "avx512f", "avx_vnni", "amx_tile"]),
        ("ALL", ["avx2", "avx512f", "avx_vnni", "amx_tile"]),
        ("avx512_core", ["avx2", "avx512f", "avx_vnni", "amx_tile"]),
        ("AVX2", ["avx2"]),
        ("AVX2_VNNI", ["avx2", "avx_vnni"]),
        ("AVX", ["avx2"]),
        ("SSE41", ["avx2"]),
    ],
)
def test_variables_of_onednn_hold_openvino_back(monkeypatch: pytest.MonkeyPatch, held: str, left: list[str]) -> None:
    monkeypatch.setattr(cpus, "vector_instructions", lambda: ["avx2", "avx512f", "avx_vnni", "amx_tile"])
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", held)
    assert openvino_vectors() == left
    assert held_to() == held.upper()

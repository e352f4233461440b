from pathlib import Path

import pytest
from rich.console import Console

from tests.training.data_form import write_screens
from training.baselines import build_network
from training.config import Config, read_config
from training.cutting import cut
from training.fit import _learning_rate
from training.methods import METHODS
from training.studies import study
from training.studies.cells import Division, NotTrainedError
from training.studies.tables import PresetName, Row, refuse_unclear_hold, table

NAMES = ("2", "3", "4", "5", "6", "7", "9", "relations", "open", "variants", "maps")


@pytest.mark.parametrize("preset", ["cpu", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_every_table_is_a_network_and_a_training(name: str, preset: PresetName) -> None:
    file = study.PRESETS[preset].file
    base = read_config(file)
    wanted = table(name, preset, base)
    assert len({row.title for row in wanted.rows}) == len(wanted.rows)
    for row in wanted.rows:
        config = read_config(file, [*wanted.settings, *row.settings])
        if config.network.trunk in ("light", "compact"):
            build_network(3, config.network)
        if not row.heavy and not row.from_phase1:  # the same budget for every method
            assert config.phase1.epochs + config.phase2.epochs == base.phase1.epochs + base.phase2.epochs
    assert wanted.axis == "" or all(row.x is not None for row in wanted.rows)


def _rates(config: Config, steps: int) -> list[float]:
    """Of each step of both phases, an epoch having so many steps; of a second warm-up the rate it comes to."""
    rates: list[float] = []
    for phase in (config.phase1, config.phase2):
        total = phase.epochs * steps
        rates += [_learning_rate(phase, step=max(step, phase.warmup_steps), total=total) for step in range(total)]
    return rates


IN_ONE_PHASE = "neither: stage 1 alone, without contrast", "reasoning without pretraining"


@pytest.mark.parametrize("title", IN_ONE_PHASE)
@pytest.mark.parametrize("preset", ["cpu", "full"])
def test_a_network_that_is_trained_in_one_phase_has_the_rates_of_both(preset: PresetName, title: str) -> None:
    file = study.PRESETS[preset].file
    base = read_config(file)
    (row,) = (row for row in table("3", preset, base).rows if row.title == title)
    rates = _rates(base, 1000)
    assert _rates(read_config(file, list(row.settings)), 1000) == pytest.approx(rates, abs=0.01 * max(rates))


def test_where_both_phases_fall_a_single_one_falls_over_all_of_its_epochs() -> None:
    file, annealed = study.PRESETS["cpu"].file, ["phase1.schedule=cosine"]
    base = read_config(file, annealed)
    for row in table("3", "cpu", base).rows:
        config = read_config(file, [*annealed, *row.settings])
        assert (config.phase1.schedule, config.phase2.schedule) == ("cosine", "cosine")


@pytest.mark.parametrize("title", IN_ONE_PHASE)
def test_what_phase_2_holds_a_single_phase_holds_too(title: str) -> None:
    file, held = study.PRESETS["cpu"].file, ["phase2.hold=0.5"]
    base = read_config(file, held)
    (row,) = (row for row in table("3", "cpu", base).rows if row.title == title)
    rates = _rates(base, 1000)
    assert _rates(read_config(file, [*held, *row.settings]), 1000) == pytest.approx(rates, abs=0.01 * max(rates))


@pytest.mark.parametrize(
    ("settings", "hold"),
    [
        (["phase1.hold=0.3", "phase2.hold=0.3"], 0.3),
        (["phase1.hold=0.3"], None),
        (["phase2.hold=0.3"], None),
        (["phase1.hold=0.3", "phase2.schedule=constant"], None),
        (["phase1.hold=0.3", "phase2.epochs=0"], 0.3),
        (["phase1.epochs=0", "phase2.hold=0.3"], 0.3),
    ],
)
def test_where_both_phases_hold_a_single_one_does_or_is_refused(settings: list[str], hold: float | None) -> None:
    """A rate that falls, rises and falls again is no schedule of one phase."""
    file, asked = study.PRESETS["cpu"].file, ["phase1.schedule=cosine", *settings]
    base = read_config(file, asked)
    alone, _, both = table("3", "cpu", base).rows
    refuse_unclear_hold(both, base)
    if hold is None:
        with pytest.raises(ValueError, match=r"^'neither: .* has one phase, in which phase1\.hold = .* the row out"):
            refuse_unclear_hold(alone, base)
    else:
        refuse_unclear_hold(alone, base)
        assert read_config(file, [*asked, *alone.settings]).phase1.hold == pytest.approx(hold)


def test_a_rate_that_was_chosen_is_every_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is the preset's: whoever says it means it."""
    seen: dict[str, float] = {}

    def cell(row: Row, division: Division, seed: int, *, preset: Path, settings: tuple[str, ...], **_: object) -> None:
        seen[row.title] = read_config(preset, [*settings, *row.settings]).phase1.learning_rate
        raise NotTrainedError

    cut(write_screens(tmp_path / "source", screens=6), tmp_path / "cut", patch_px=96)
    monkeypatch.setattr(study, "run_cell", cell)
    for chosen, rates in (([], {3e-3, 3e-4, 1e-3}), (["phase1.learning_rate=3e-3"], {3e-3})):
        with pytest.raises(ValueError, match="no finished cell"):
            study.run(
                "2",
                preset=study.PRESETS["cpu"],
                data=tmp_path / "cut",
                out=tmp_path / "out",
                seeds=(0,),
                folds=(),
                settings=chosen,
                patch_px=None,
                console=Console(quiet=True),
            )
        assert set(seen.values()) == rates


def test_the_full_preset_holds_the_papers_methods() -> None:
    rows = table("2", "full", study.PRESETS["full"].base(())).rows
    assert [row.title for row in rows] == [method.title for method in METHODS.values()]
    assert not any(row.heavy for row in rows)
    assert [row.paper for row in rows] == [(m.screens[0], m.screens[3]) for m in METHODS.values()]


def test_an_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match=r"no table '10': there are 8, 2, 3, .*, maps"):
        table("10", "cpu", study.PRESETS["cpu"].base(()))


def test_batches_of_every_size_divide_over_the_devices_of_table_7() -> None:
    """All rows begin with one phase 1, which batch normalisation makes another one on other devices."""
    full = study.PRESETS["full"]
    assert table("7", "full", full.base(())).settings == ("devices=2",)  # of two patches to begin with
    assert table("7", "full", full.base(["devices=1"])).settings == ("devices=1",)

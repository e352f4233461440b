"""What the maps hit, against references that look at every cell and every pixel."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests.training.data_form import write_screens
from training.__main__ import app
from training.attribution import Attribution
from training.cutting import cut
from training.datasets import PatchSet
from training.localisation import TOLERANCE_PX, Hit, energy, inside, localisation_tables, localise, near
from training.measures import Mean, bootstrap_means
from training.trunks import build_trunk
from training.visible import Visible

LABELS = ["bubble", "pinhole", "scratch", "tin_ash"]
PATCH = 64


def box(left: int, top: int, right: int, bottom: int) -> Visible:
    return Visible(
        label="dot", presence=1, left=left, top=top, right=right, bottom=bottom, border_px=None, contrast=None
    )


@st.composite
def boxes(draw: st.DrawFn) -> list[Visible]:
    found = []
    for _ in range(draw(st.integers(1, 3))):
        left, top = draw(st.integers(0, PATCH - 1)), draw(st.integers(0, PATCH - 1))
        found.append(box(left, top, draw(st.integers(left + 1, PATCH)), draw(st.integers(top + 1, PATCH))))
    return found


MAPS = hnp.arrays(np.float64, st.sampled_from([(2, 2), (4, 4), (8, 8)]), elements=st.floats(-5, 5, width=32))


@given(MAPS, boxes())
def test_energy_is_the_share_of_the_cells_that_are_half_a_cell_from_a_pixel_of_a_box(
    part: NDArray[np.float64], found: list[Visible]
) -> None:
    side = PATCH // len(part)
    pixels = np.zeros((PATCH, PATCH), bool)
    for one in found:
        for y in range(one.top, one.bottom):
            for x in range(one.left, one.right):
                pixels[y, x] = True
    within = total = 0.0
    for row in range(len(part)):
        for column in range(len(part)):
            value = max(0.0, float(part[row, column]))
            total += value
            top, left = row * side - side // 2, column * side - side // 2
            touched = pixels[max(0, top) : top + 2 * side, max(0, left) : left + 2 * side].any()
            assert touched == inside(found, part.shape, PATCH)[row, column]
            within += value if touched else 0.0
    assert energy(part, found, PATCH) == pytest.approx(within / total if total else 0.0)


@pytest.mark.parametrize("trunk", ["light", "compact", "resnet18"])
def test_what_a_cell_sees_lies_within_half_a_cell_of_it(trunk: str) -> None:
    """By the gradient of a cell in the middle, of a network that has learnt nothing."""
    torch.manual_seed(0)
    network, _ = build_trunk(trunk)
    side = 256
    pixels = torch.rand(4, 1, side, side, requires_grad=True)
    made = network.eval()(pixels)
    at = made.shape[-1] // 2
    made[:, :, at, at].abs().sum().backward()
    assert pixels.grad is not None
    weight_S = pixels.grad.abs().sum(dim=(0, 1, 2))
    middle = float((weight_S * (torch.arange(side) + 0.5)).sum() / weight_S.sum())
    cell = side / made.shape[-1]
    assert at * cell - 1 <= middle <= (at + 0.5) * cell + 1  # from its left edge to its middle


@given(MAPS, boxes())
def test_a_cell_is_near_where_its_centre_is(part: NDArray[np.float64], found: list[Visible]) -> None:
    side = PATCH / len(part)
    cells = near(found, part.shape, PATCH)
    for row in range(len(part)):
        for column in range(len(part)):
            y, x = (row + 0.5) * side, (column + 0.5) * side
            reach = [max(one.left - x, x - one.right, one.top - y, y - one.bottom) <= TOLERANCE_PX for one in found]
            assert cells[row, column] == any(reach)


def test_a_map_without_a_positive_cell_has_no_energy() -> None:
    assert energy(-np.ones((2, 2)), [box(0, 0, 64, 64)], PATCH) == 0


def test_the_bootstrap_draws_whole_screens() -> None:
    """Against a loop that draws them one by one; and two patches of one screen are no more certain than one."""
    rng = np.random.default_rng(1)
    screens = [rng.integers(0, 12, 40), rng.integers(0, 12, 15)]
    values = [rng.random(40) + screens[0] / 10, rng.random(15)]
    each, mean = bootstrap_means(values, screens)
    drawn: list[list[float]] = [[], [], []]
    for _ in range(4000):
        chosen = rng.integers(0, 12, 12)
        means = []
        for kind in range(2):
            picked = [v for screen in chosen for v, s in zip(values[kind], screens[kind], strict=True) if s == screen]
            if picked:
                drawn[kind].append(float(np.mean(picked)))
                means.append(drawn[kind][-1])
        drawn[2].append(float(np.mean(means)))
    for found, expected in zip([*each, mean], drawn, strict=True):
        assert found.low == pytest.approx(np.quantile(expected, 0.025), abs=0.03)
        assert found.high == pytest.approx(np.quantile(expected, 0.975), abs=0.03)
    assert each[0].value == pytest.approx(values[0].mean())
    assert mean.value == pytest.approx((values[0].mean() + values[1].mean()) / 2)
    twice, _ = bootstrap_means([np.tile(values[0], 2)], [np.tile(screens[0], 2)])
    assert width(twice[0]) == pytest.approx(width(each[0]), abs=0.02)


def width(mean: Mean) -> float:
    assert mean.low is not None
    assert mean.high is not None
    return mean.high - mean.low


def test_one_screen_gives_no_interval_but_its_own_value() -> None:
    each, mean = bootstrap_means([np.array([0.25, 0.75])], [np.array([3, 3])])
    assert each[0] == mean == (0.5, None, None, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    source = write_screens(folder / "source", screens=12)
    table = (source / "boxes.csv").read_text().replace(",dot,", ",bubble,").replace(",line,", ",scratch,")
    (source / "boxes.csv").write_text(table)
    cut(source, folder / "cut", patch_px=PATCH, labels=LABELS)
    return folder / "cut"


def test_a_bundle_is_measured_over_the_patches_that_have_a_label(one_stage: Path, data: Path) -> None:
    found = localise(Attribution(one_stage), [data], part=None)
    assert list(found) == ["one stage"]
    one, patches = found["one stage"], PatchSet([data], None)
    assert list(one.energy) == list(one.pointing) == ["bubble", "scratch"]  # no patch has the others
    attribution, visible = Attribution(one_stage), patches.visible()
    for label in one.energy:
        column = LABELS.index(label)
        energies, hits = [], 0
        for row in np.flatnonzero(patches.labels[:, column] == 1).tolist():
            part = attribution.explain(patches.patch(row)[None, None]).stage2.map[0, column]
            true = [v for v in visible[row] if v.label == label]
            energies.append(energy(part, true, PATCH))
            hits += bool(near(true, part.shape, PATCH)[np.unravel_index(part.argmax(), part.shape)])
        assert one.energy[label].value == pytest.approx(np.mean(energies))
        assert one.pointing[label][:2] == (hits, len(energies))
    assert 0 < one.flat["bubble"].energy < one.flat["bubble"].pointed < 1
    coarse = replace(one, flat={label: Hit(2 * hit.energy, hit.pointed) for label, hit in one.flat.items()})
    for others, rows in (({}, 1), ({"same": found}, 1), ({"coarse": {"one stage": coarse}}, 2)):
        tables = list(localisation_tables({"b": found, **others}))
        named = list(tables[0].columns[0].cells)
        assert sum(str(name).startswith("a flat map") for name in named) == rows  # of larger cells it hits more
        assert len(tables) == 2


def test_one_screen_tells_no_interval_without_width(one_stage: Path, tmp_path: Path) -> None:
    """The bootstrap draws it again and again: of shares there is Wilson's, of the rest it is said."""
    source = write_screens(tmp_path / "source", screens=2)  # the first has no defect
    table = (source / "boxes.csv").read_text().replace(",dot,", ",bubble,").replace(",line,", ",scratch,")
    (source / "boxes.csv").write_text(table)
    cut(source, tmp_path / "cut", patch_px=PATCH, labels=LABELS)
    found = localise(Attribution(one_stage), [tmp_path / "cut"], part=None)
    one = found["one stage"]
    assert all(mean.low is mean.high is None for mean in (one.energy_mean, *one.energy.values()))
    ends = [(share.low, share.high) for share in one.pointing.values()]
    assert (one.pointing_mean.low, one.pointing_mean.high) == pytest.approx(np.mean(ends, axis=0))
    assert width(one.pointing_mean) > 0
    shares, pointing = localisation_tables({"b": found})
    for column in shares.columns[1:]:
        assert "too few screens" in str(next(iter(column.cells)))
    for column in pointing.columns[1:]:
        assert "too few screens" not in str(next(iter(column.cells)))


def test_the_command_measures_several_bundles(one_stage: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    arguments = ["localise", "--bundle", str(one_stage), "--bundle", f"{one_stage}/.", "--data", str(data)]
    answer = CliRunner().invoke(app, [*arguments, "--part", "all", "--json", str(file)])
    assert answer.exit_code == 0, answer.output
    assert "bundle, one stage" in answer.output
    (figures,) = json.loads(file.read_text()).values()  # the same folder, however it is written
    assert figures["one stage"]["pointing"]["bubble"][1] > 3


def test_data_without_boxes_or_labels_is_refused(one_stage: Path, data: Path, tmp_path: Path) -> None:
    for file in data.iterdir():
        if file.is_file() and file.name != "defects.csv":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "images").symlink_to(data / "images")
    with pytest.raises(ValueError, match=r"has no defects.csv"):
        localise(Attribution(one_stage), [tmp_path], part="test")
    (tmp_path / "defects.csv").write_bytes((data / "defects.csv").read_bytes())
    header, *rows = (tmp_path / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join([header, *(f"{r.split(',')[0]},0,0,0,0" for r in rows), ""]))
    with pytest.raises(ValueError, match="no patch of the part 'test' has a label"):
        localise(Attribution(one_stage), [tmp_path], part="test")

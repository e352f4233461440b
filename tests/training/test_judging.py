import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from training.__main__ import app
from training.costs import Costs
from training.judging import judge
from training.measures import wilson


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six screens: a, b, c have defects, d, e, f have none."""
    (tmp_path / "screens").mkdir()
    for number, name in enumerate("abcdef"):
        noise = np.random.default_rng(number).normal(100, 2, (100, 100))
        cv2.imwrite(str(tmp_path / "screens" / f"{name}.png"), noise.round().astype(np.uint8))
    boxes = ["a,dot,10,10,20,20,100", "a,line,50,50,90,60,400", "b,dot,0,0,5,5,25", "c,line,0,0,9,9,81"]
    (tmp_path / "boxes.csv").write_text("\n".join(["screen,label,left,top,right,bottom,area_px", *boxes, ""]))
    parts = [f"{name},{'test' if name in 'ad' else 'train'}" for name in "abcdef"]
    (tmp_path / "splits.csv").write_text("\n".join(["screen,part", *parts, ""]))
    return tmp_path


def answer(screen: str, verdict: str, *found: tuple[str, tuple[int, int, int, int]]) -> dict[str, Any]:
    names = ("left", "top", "right", "bottom")
    return {
        "screen_id": screen,
        "verdict": verdict,
        "labels": {label: {"present": label in [f[0] for f in found]} for label in ("dot", "line")},
        "defects": [{"label": label, "box": dict(zip(names, box, strict=True))} for label, box in found],
    }


def write(folder: Path, answers: object) -> Path:
    file = folder / "verdicts.json"
    file.write_text(json.dumps(answers))
    return file


def test_screens_labels_and_boxes_are_counted(source: Path) -> None:
    answers = [
        answer("a", "fail", ("dot", (19, 19, 30, 30)), ("line", (0, 0, 10, 10))),  # dot found, line missed
        answer("b", "pass"),  # an escape
        answer("c", "review", ("line", (8, 8, 9, 9))),
        answer("d", "fail", ("dot", (1, 1, 2, 2))),  # overkill
        answer("e", "review"),
        answer("f", "pass"),
    ]
    found = judge(write(source, answers), source)
    assert found.escape[:2] == (1, 3)
    assert found.overkill[:2] == (1, 3)
    assert found.review[:2] == (2, 6)
    assert found.review_of_clean[:2] == (1, 3)
    assert found.labels["dot"].boxes_found[:2] == (1, 2)
    assert found.labels["line"].boxes_found[:2] == (1, 2)
    assert found.labels["dot"].false_boxes == 1
    assert found.labels["line"].false_boxes == 1
    assert (found.labels["dot"].precision, found.labels["dot"].recall) == (0.5, 0.5)
    assert (found.labels["line"].precision, found.labels["line"].recall) == (1, 1)
    assert (found.labels["dot"].accuracy, found.labels["line"].accuracy) == (4 / 6, 1)
    assert (found.accuracy, found.precision, found.recall) == pytest.approx((5 / 6, 0.75, 0.75))
    assert found.f_measure == pytest.approx(0.75)
    assert found.wrong == [{"screen": "b", "error": "escape"}, {"screen": "d", "error": "overkill"}]


def test_shares_of_the_line_are_weighed_by_its_prevalence(source: Path) -> None:
    """Half of what is judged is defective, and two of three such go to review; of the line a tenth is."""
    verdicts = ("review", "review", "pass", "review", "pass", "fail")
    answers = write(source, [answer(name, verdict) for name, verdict in zip("abcdef", verdicts, strict=True)])
    alone = judge(answers, source)
    assert (alone.review[:2], alone.review_of_defective[:2], alone.review_of_clean[:2]) == ((3, 6), (2, 3), (1, 3))
    assert alone.line is None
    line = judge(answers, source, costs=Costs(prevalence=0.1, review_capacity=0.2)).line
    assert line is not None
    assert (line.prevalence, line.review_capacity) == (0.1, 0.2)
    few, many = wilson(1, 3), wilson(2, 3)
    assert line.escape == pytest.approx((0.1 / 3, 0.1 * few.low, 0.1 * few.high))
    assert line.overkill == pytest.approx((0.9 / 3, 0.9 * few.low, 0.9 * few.high))
    ends = (0.1 * many.low + 0.9 * few.low, 0.1 * many.high + 0.9 * few.high)
    assert line.review == pytest.approx((0.1 * 2 / 3 + 0.9 / 3, *ends))


def test_the_command_tells_review_by_kind_and_of_the_line(source: Path, tmp_path: Path) -> None:
    file = write(source, [answer("a", "review"), answer("b", "fail"), answer("d", "pass"), answer("e", "pass")])
    figures = tmp_path / "judge.json"
    command = ["judge", str(file), str(source), "--json", str(figures)]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    rows = [" ".join(line.split()) for line in told.output.splitlines()]
    assert any("review of defective ones │ 1/2 │ 50.0%" in row for row in rows)
    assert any("review of clean ones │ 0/2 │ 0.0%" in row for row in rows)
    assert "of the line's screens" not in told.output
    assert json.loads(figures.read_text())["line"] is None
    (tmp_path / "limits.toml").write_text("prevalence = 0.2\nreview_capacity = 0.3\n")
    told = CliRunner().invoke(app, [*command, "--costs", str(tmp_path / "limits.toml")])
    assert told.exit_code == 0, told.output
    assert "20.0% defective" in told.output
    assert "review, where people can look at 30.0%" in told.output
    assert json.loads(figures.read_text())["line"]["review"][0] == pytest.approx(0.1)


def test_boxes_that_only_touch_do_not_overlap(source: Path) -> None:
    found = judge(write(source, [answer("a", "fail", ("dot", (20, 10, 30, 20)))]), source)
    assert found.labels["dot"].boxes_found[:2] == (0, 1)


def test_a_problem_is_not_a_verdict(source: Path) -> None:
    problem = {"screen_id": "a", "code": "unreadable_image", "status": 422}
    found = judge(write(source, [problem, answer("d", "pass")]), source)
    assert found.unanswered == 1
    assert found.escape[:2] == (0, 0)
    assert found.overkill[:2] == (0, 1)


def test_a_part_without_screens_is_refused(source: Path) -> None:
    (source / "splits.csv").write_text("screen,part\n" + "".join(f"{name},test\n" for name in "abcdef"))
    with pytest.raises(ValueError, match="no screens in the part 'tset': test"):
        judge(write(source, [answer("a", "pass")]), source, part="tset")


def test_a_page_of_the_services_record_is_a_list_of_verdicts(source: Path) -> None:
    page = {"items": [answer("a", "pass")], "next": None}
    assert judge(write(source, page), source).screens == 1


def test_it_says_which_models_gave_the_verdicts(source: Path) -> None:
    models = [{"name": "screens", "version": str(number), "limits": 1} for number in (1, 2)]
    answers = [{**answer(name, "pass"), "model": model} for name, model in zip("ab", models, strict=True)]
    assert judge(write(source, answers), source).models == ["screens 1, limits 1", "screens 2, limits 1"]


def test_boxes_of_a_screen_that_is_not_there_are_refused(source: Path) -> None:
    table = source / "boxes.csv"
    table.write_text(table.read_text().replace("\na,", "\na.png,"))
    with pytest.raises(ValueError, match=r"'a\.png', which is not there"):
        judge(write(source, [answer("a", "pass")]), source)


def test_one_part_alone(source: Path) -> None:
    answers = [answer(name, "pass") for name in "abcdef"]
    found = judge(write(source, answers), source, part="test")
    assert (found.screens, found.escape[:2], found.overkill[:2]) == (2, (1, 1), (0, 1))


def test_contrasts_that_the_data_does_not_tell_are_measured(source: Path) -> None:
    file = source / "screens" / "b.png"
    frame = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    assert frame is not None
    frame[:5, :5] += 36  # 18 times the noise
    cv2.imwrite(str(file), frame)
    found = judge(write(source, [answer("a", "fail"), answer("b", "pass")]), source).labels["dot"]
    assert {band: share[:2] for band, share in found.by_contrast.items()} == {"0-6": (0, 1), "12-24": (0, 1)}
    assert {band: share[:2] for band, share in found.escape_by_contrast.items()} == {"0-6": (0, 1), "12-24": (1, 1)}
    file.unlink()
    file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"b\.png cannot be read"):
        judge(write(source, [answer("b", "pass")]), source)


def test_boxes_by_contrast(source: Path) -> None:
    rows = ["a,0,dot,4.0,10", "a,1,line,30.0,10", "b,2,dot,5.0,10", "c,3,line,7.0,9"]
    (source / "conditions.csv").write_text("\n".join(["screen,id,label,contrast,size", *rows, ""]))
    found = judge(write(source, [answer("a", "fail", ("dot", (10, 10, 12, 12))), answer("b", "pass")]), source)
    assert {band: share[:2] for band, share in found.labels["dot"].by_contrast.items()} == {"0-6": (1, 2)}
    assert {band: share[:2] for band, share in found.labels["line"].by_contrast.items()} == {"24-inf": (0, 1)}


def test_a_label_that_the_bundle_does_not_know_is_missed(source: Path) -> None:
    with (source / "boxes.csv").open("a") as file:
        file.write("d,oil,0,0,9,9,81\n")
    answers = [answer("a", "fail", ("dot", (10, 10, 12, 12)), ("line", (50, 50, 60, 60))), answer("d", "pass")]
    found = judge(write(source, answers), source)
    assert (found.labels["oil"].screens_with, found.labels["oil"].recall) == (1, 0)
    assert found.labels["oil"].boxes_found[:2] == (0, 1)
    assert found.f_measure == pytest.approx(2 / 3)  # of dot 1, line 1, oil 0


def test_screens_that_are_not_in_the_list_are_counted(source: Path) -> None:
    answers = write(source, [answer("a", "fail"), answer("e", "pass")])
    assert judge(answers, source).missing == 4
    assert judge(answers, source, part="test").missing == 1  # of a and d


def test_a_label_that_no_screen_has_takes_no_part_in_the_macro(source: Path) -> None:
    answers = [answer("b", "fail", ("dot", (0, 0, 5, 5))), answer("d", "pass")]
    found = judge(write(source, answers), source)
    assert found.labels["line"].screens_with == 0
    assert found.f_measure == 1


def test_escapes_by_the_contrast_of_the_strongest(source: Path) -> None:
    rows = ["a,0,dot,4.0,10", "a,1,line,30.0,10", "b,2,dot,13.0,10", "c,3,line,7.0,9"]
    (source / "conditions.csv").write_text("\n".join(["screen,id,label,contrast,size", *rows, ""]))
    answers = [answer("a", "fail"), answer("b", "pass"), answer("c", "pass")]
    found = judge(write(source, answers), source)
    bands = {name: {b: s[:2] for b, s in r.escape_by_contrast.items()} for name, r in found.labels.items()}
    assert bands == {"dot": {"0-6": (0, 1), "12-24": (1, 1)}, "line": {"6-12": (1, 1), "24-inf": (0, 1)}}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"not": "a list"}, "not a JSON list"),
        ([{"verdict": "pass"}], "entry 0: no screen_id"),
        ([{"screen_id": "a", "verdict": "pass", "defects": []}], "entry 0 is no verdict: labels: Field required"),
        ([answer("a", "Pass")], "entry 0 is no verdict: verdict: Input should be 'pass', 'fail' or 'review'"),
        ([{**answer("a", "pass"), "labels": {"dot": 0.3}}], "entry 0 is no verdict: labels.dot"),
        ([], "answers none of these screens"),
        ([answer("z", "pass")], "no screen 'z'"),
        ([answer("a", "pass"), answer("a", "fail")], "there twice"),
    ],
)
def test_answers_that_cannot_be_judged_are_refused(source: Path, answers: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(write(source, answers), source)


@given(total=st.integers(1, 2000), data=st.data())
def test_the_interval_holds_its_share(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    share = wilson(count, total)
    assert 0 <= share.low <= share.ratio + 1e-12
    assert share.ratio <= share.high + 1e-12 <= 1 + 1e-9


def test_wilson_against_published_values() -> None:
    """Newcombe 1998, Table I, method 3 without continuity correction: 81/263, 15/148, 0/20."""
    assert wilson(81, 263)[3:] == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148)[3:] == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20)[3:] == pytest.approx((0.0, 0.1611), abs=1e-4)

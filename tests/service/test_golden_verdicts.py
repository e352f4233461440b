"""The contract with the line controller: the exact JSON of a verdict, in `tests/golden/verdict_*.json`."""

import json
from pathlib import Path

import httpx
import pytest

from service.aggregation import REASONS
from service.examples import VERDICTS
from service.verdict import from_json, to_json
from tests.service.apps import SCREENS, post

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ("pass", "fail", "review")


def golden(kind: str) -> str:
    return (GOLDEN / f"verdict_{kind}.json").read_text()


def keys(value: object) -> object:
    """The keys of a JSON value in their order, all the way down; of a list, those of each kind of item."""
    if isinstance(value, dict):
        return [(key, keys(item)) for key, item in value.items()]
    if isinstance(value, list):
        return {repr(keys(item)) for item in value}
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_its_golden_file(kind: str) -> None:
    assert json.dumps(json.loads(to_json(VERDICTS[kind])), indent=2) + "\n" == golden(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_golden_file_reads_as_its_example(kind: str) -> None:
    assert from_json(golden(kind)) == VERDICTS[kind]


def test_there_is_one_golden_file_for_each_kind_of_verdict() -> None:
    assert {path.stem for path in GOLDEN.glob("verdict_*")} == {f"verdict_{kind}" for kind in KINDS}
    assert {kind: VERDICTS[kind].verdict for kind in VERDICTS} == {kind: kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_exactly_the_keys_of_its_golden_file(client: httpx.Client, kind: str) -> None:
    answer = post(client, kind, SCREENS[kind]).json()
    assert answer["verdict"] == kind
    assert keys(answer) == keys(json.loads(golden(kind)))


def test_an_answer_has_the_types_of_its_golden_file(client: httpx.Client) -> None:
    def types(value: object) -> object:
        if isinstance(value, dict):
            return {key: types(item) for key, item in value.items()}
        return [types(item) for item in value] if isinstance(value, list) else type(value)

    answer = post(client, "types", SCREENS["fail"]).json()
    assert types(answer) == types(json.loads(golden("fail")))


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_gives_only_reasons_that_exist_in_the_order_in_which_they_decide(kind: str) -> None:
    reasons = VERDICTS[kind].reasons
    assert list(reasons) == sorted(reasons, key=REASONS.index)
    assert bool(reasons) == (kind != "pass")

import json

import pytest

from service.examples import VERDICTS
from service.problems import problem
from service.verdict import STAGES, Timing, from_json, to_json


def test_the_stages_are_those_of_the_answer_in_their_order() -> None:
    answer = json.loads(to_json(VERDICTS["pass"]))
    assert [f"{stage}_s" for stage in STAGES] == list(answer["timing"])
    assert VERDICTS["pass"].timing.by_stage == {stage: answer["timing"][f"{stage}_s"] for stage in STAGES}
    seconds = {stage: float(number) for number, stage in enumerate(STAGES)}
    assert Timing.of({**seconds, "record": 9.0}).by_stage == seconds


@pytest.mark.parametrize("kind", VERDICTS)
def test_json_is_one_line_and_reads_back(kind: str) -> None:
    text = to_json(VERDICTS[kind])
    assert "\n" not in text
    assert from_json(text) == VERDICTS[kind]


def test_what_is_no_verdict_does_not_read_as_one() -> None:
    whole = json.loads(to_json(VERDICTS["pass"]))
    texts = [
        "",
        "null",
        "{}",
        '{"verdict":"pass"}',
        problem("record_failed", "", instance="/v1/screens").model_dump_json(),
        json.dumps({**whole, "verdict": "ok"}),
        *(json.dumps({key: value for key, value in whole.items() if key != left_out}) for left_out in whole),
    ]
    for text in texts:
        with pytest.raises(ValueError, match="validation error"):
            from_json(text)

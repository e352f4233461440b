"""What a process writes to standard error. A process of its own each time: logging is configured once in each."""

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import logging, sys
import structlog
from service import logs

logs.configure(level=sys.argv[1], form=sys.argv[2])
own, foreign = structlog.get_logger("service.own"), logging.getLogger("uvicorn.error")

def fail():
    a_local_of_the_frame = "do not print me"
    raise LookupError("nothing there")

structlog.contextvars.bind_contextvars(request_id="seven")
own.debug("looking", path="/readyz")
own.info("inspected", screen_id="one", verdict="pass", reasons=())
own.info("two\\nlines", value=b"bytes")
foreign.info("running on %s", "http://127.0.0.1", extra={"color_message": "in colour"})
logging.getLogger("alembic.runtime.migration").info("Context impl SQLiteImpl.")
try:
    fail()
except LookupError:
    own.exception("unexpected")
    foreign.exception("Exception in ASGI application")
"""


def output(level: str, form: str) -> str:
    command = [sys.executable, "-c", PROGRAM, level, form]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == ""  # which is for answers
    return answer.stderr


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """The lines for machines."""
    return [json.loads(line) for line in output("info", "json").splitlines()]


@pytest.fixture(scope="module")
def text() -> str:
    """The lines for people."""
    return output("debug", "console")


def test_each_line_is_one_object_with_its_place_and_time(lines: list[dict[str, Any]]) -> None:
    assert [line["event"] for line in lines] == [
        "inspected",
        "two\nlines",
        "running on http://127.0.0.1",
        "unexpected",
        "Exception in ASGI application",
    ]
    for line in lines:
        assert line["request_id"] == "seven"
        time = datetime.fromisoformat(line["timestamp"])
        assert time.utcoffset() == timedelta(0)


def test_a_line_has_its_values_and_nothing_else(lines: list[dict[str, Any]]) -> None:
    inspected = {key: value for key, value in lines[0].items() if key != "timestamp"}
    assert inspected == {
        "event": "inspected",
        "level": "info",
        "logger": "service.own",
        "request_id": "seven",
        "screen_id": "one",
        "verdict": "pass",
        "reasons": [],
    }


def test_lines_of_libraries_take_the_same_form(lines: list[dict[str, Any]]) -> None:
    foreign = lines[2]
    assert (foreign["level"], foreign["logger"]) == ("info", "uvicorn.error")
    assert foreign.keys() == lines[0].keys() - {"screen_id", "verdict", "reasons"}


def test_a_value_that_json_does_not_know_is_no_error(lines: list[dict[str, Any]]) -> None:
    assert "bytes" in lines[1]["value"]


@pytest.mark.parametrize("index", [3, 4])
def test_an_exception_is_in_its_line_without_the_locals(lines: list[dict[str, Any]], index: int) -> None:
    line = lines[index]
    assert line["level"] == "error"
    (exception,) = line["exception"]
    assert (exception["exc_type"], exception["exc_value"]) == ("LookupError", "nothing there")
    assert [frame["name"] for frame in exception["frames"]][-1] == "fail"
    assert "do not print me" not in json.dumps(line)


def test_less_severe_lines_are_left_out() -> None:
    errors = [json.loads(line) for line in output("error", "json").splitlines()]
    assert [line["level"] for line in errors] == ["error", "error"]


def test_people_get_plain_words_where_there_is_no_terminal(text: str) -> None:
    assert "\x1b" not in text
    inspected = next(line for line in text.splitlines() if "inspected" in line)
    for word in ("info", "service.own", "screen_id=one", "verdict=pass", "request_id=seven"):
        assert word in inspected
    assert "looking" in text  # at the level debug


def test_people_get_tracebacks_without_the_locals(text: str) -> None:
    assert text.count("Traceback (most recent call last)") == 2
    assert text.count("LookupError: nothing there") == 2
    assert "do not print me" not in text


def test_migrations_are_no_news(lines: list[dict[str, Any]], text: str) -> None:
    assert "SQLiteImpl" not in json.dumps(lines) + text

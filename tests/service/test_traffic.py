"""Traffic in front of a service that a test plays itself, or that is not there."""

import itertools
import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from service.client import Served
from service.examples import VERDICTS
from service.traffic import SENDERS, Traffic
from service.verdict import to_json

FRAMES = [np.full((2, 3), grey, np.uint8) for grey in (10, 20)]
GOOD: dict[str, Any] = json.loads(to_json(VERDICTS["pass"]))
STALE: dict[str, Any] = json.loads(to_json(replace(VERDICTS["pass"], verdict="review", reasons=("self_test_stale",))))


def score(grey: int) -> dict[str, Any]:
    """A verdict whose scores are those of a frame of this grey."""
    return {**GOOD, "labels": {name: {**found, "score": grey / 100} for name, found in GOOD["labels"].items()}}


def posted_to(answer: Callable[[int, int], dict[str, Any]]) -> Traffic:
    """Traffic after a moment before a service that answers by the number of the request and the grey of its frame."""
    numbers = itertools.count()

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=answer(next(numbers), request.content[0]))

    with httpx.Client(transport=httpx.MockTransport(handle), base_url="http://service") as client:
        traffic = Traffic(Served(client, 0), FRAMES)
        traffic.load_for(0.1)
    assert len(traffic.durations) > len(FRAMES)
    return traffic


def test_frames_that_always_have_the_same_scores_are_no_failures() -> None:
    assert posted_to(lambda _, grey: score(grey)).failures == []


def test_another_score_for_the_same_frame_is_a_failure() -> None:
    traffic = posted_to(lambda number, grey: score(grey + (number == 5)))
    assert 1 <= len(traffic.failures) <= len(traffic.durations)
    assert "for the same frame before" in traffic.failures[0]


def test_a_stale_self_test_is_a_failure_though_there_once_was_one() -> None:
    assert STALE["proof"]["self_test_age_s"] is not None
    traffic = posted_to(lambda *_: STALE)
    assert len(traffic.failures) == len(traffic.durations)
    assert "no fresh self-test" in traffic.failures[0]


def test_senders_end_where_nothing_listens() -> None:
    with socket.socket() as taken:  # bound, and never listening: it refuses
        taken.bind(("127.0.0.1", 0))
        with httpx.Client(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}", trust_env=False) as client:
            traffic = Traffic(Served(client, 0), FRAMES)
            begun_at = time.monotonic()
            traffic.load_for(60)
    assert time.monotonic() - begun_at < 30
    assert 1 <= len(traffic.failures) <= SENDERS
    assert "no connection" in traffic.failures[0]
    assert "no screen answered" in traffic.describe()

"""Frames that come as a camera scans them: how soon after the last line the verdict is there."""

import json
import statistics
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from service.bench.report import BenchError, Row
from service.bench.work import Work
from service.client import ClientError, post_frame, post_pieces

FRAMES_PER_S = 1.0  # of a camera
PIECE_LINES = 128
OF_WHOLE = 0.2
TRIES = 5  # at least


def measure(work: Work) -> Iterator[Row]:
    """A frame at a camera's pace, beside the same frame posted whole, to an idle service."""
    after_last: list[float] = []
    whole: list[float] = []
    try:
        with work.served() as served:
            for number in range(max(TRIES, round(work.seconds / 2))):
                frame = work.frames[number % len(work.frames)]
                begun_at = time.monotonic()
                wanted = json.loads(post_frame(served.client, f"whole-{number}", frame))
                whole.append(time.monotonic() - begun_at)
                height, width = frame.shape
                camera = _Camera(frame)
                answer = post_pieces(served.client, f"lines-{number}", camera.lines(), width=width, height=height)
                after_last.append(time.monotonic() - camera.ended_at)
                found = json.loads(answer)
                if found["labels"] != wanted["labels"] or found["defects"] != wanted["defects"]:
                    raise BenchError(f"frame {number} has another verdict line by line than whole")
    except ClientError as error:
        raise BenchError(str(error)) from error
    after_s, whole_s = statistics.median(after_last), statistics.median(whole)
    yield Row(
        name="from the last line to the verdict, of the time of a whole frame",
        found=f"{after_s / whole_s:.2f} ({after_s * 1e3:.0f} ms, whole {whole_s * 1e3:.0f} ms; "
        f"slowest {max(after_last) * 1e3:.0f} and {max(whole) * 1e3:.0f} ms of {len(whole)})",
        limit=f"{OF_WHOLE:g}",
        passed=after_s <= OF_WHOLE * whole_s,
        figures={"after_last_line_s": after_last, "whole_s": whole},
    )


class _Camera:
    """Hands out a frame's lines at its pace.

    Attributes:
        ended_at: when the last line was handed out.
    """

    def __init__(self, frame: NDArray[np.uint8]) -> None:
        self._frame = frame
        self.ended_at = 0.0

    def lines(self) -> Iterator[bytes]:
        """Some lines at a time, each piece when its last line was scanned."""
        begun_at, height = time.monotonic(), len(self._frame)
        for top in range(0, height, PIECE_LINES):
            piece = self._frame[top : top + PIECE_LINES]
            scanned_at = begun_at + (top + len(piece)) / height / FRAMES_PER_S
            time.sleep(max(0.0, scanned_at - time.monotonic()))
            self.ended_at = time.monotonic()
            yield piece.tobytes()

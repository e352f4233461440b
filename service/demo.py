"""The whole product on one machine: render screens, serve, post them as a line would, show the verdicts.

Rendering and serving run as processes of their own: this file knows the renderer by its command and its
files, and the service by HTTP, as any client does.
"""

import csv
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from service.client import post_frame, serving
from service.picture import write
from service.rendering import read_frame, render
from service.tables import describe_labels, describe_verdict, table
from service.verdict import Verdict, from_json


class DemoError(Exception):
    """A step of the demonstration failed; the message says which, and where its output is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """One rendered screen and what the service answered; `seconds` from the first byte sent."""

    screen_id: str
    truth: str
    answer: str
    verdict: Verdict
    seconds: float


def run(out: Path, *, screens: int, seed: int, size: tuple[int, int], console: Console) -> None:
    """Render, serve, post, show.

    Args:
        out: folder to fill: `screens/`, `boxes.csv`, `overlays/`, `verdicts.json`, `server.log`.
        screens: how many to render.
        seed: of the renderer.
        size: (height, width) of a screen, pixels.
        console: where to show progress and the table.

    Raises:
        DemoError: the folder holds something else.
        RenderingError: rendering failed, or a screen cannot be read.
        ClientError: the service could not be started, or refused a screen.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps({"screens": screens, "seed": seed, "height": size[0], "width": size[1]})
    with Progress(console=console) as progress:
        if not _rendered(out, wanted):
            task = progress.add_task("render", total=screens)
            render(out, screens=screens, seed=seed, size=size, tell=lambda made: progress.update(task, completed=made))
            (out / "demo.json").write_text(wanted)
        truths = _truths(out)
        started = progress.add_task("start the service", total=1)
        with serving({"INSPECT_FRAME_SIZE": f"{size[1]}x{size[0]}"}, out / "server.log") as served:
            progress.update(started, completed=1)
            inspected = [
                _inspect(served.client, out, screen_id, truth)
                for screen_id, truth in progress.track(truths.items(), description="inspect")
            ]
    (out / "verdicts.json").write_text(f"[{','.join(item.answer for item in inspected)}]\n")
    console.print(_table(inspected))
    console.print(escape(f"overlays: {out / 'overlays'}   verdicts: {out / 'verdicts.json'}"), soft_wrap=True)


def _rendered(out: Path, wanted: str) -> bool:
    """Whether an earlier demonstration left the same screens.

    Raises:
        DemoError: the folder holds others.
    """
    if not (out / "boxes.csv").exists():
        return False
    made = out / "demo.json"
    if made.is_file() and made.read_text() == wanted:
        return True
    raise DemoError(f"{out} holds other screens: choose another folder with --out, or remove it")


def _truths(out: Path) -> dict[str, str]:
    """What was drawn on each screen, in the order rendered: `scratch 2, bubble 1`, or `clean`."""
    with (out / "splits.csv").open(newline="") as file:
        drawn: dict[str, Counter[str]] = {row["screen"]: Counter() for row in csv.DictReader(file)}
    with (out / "boxes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            drawn[row["screen"]][row["label"]] += 1
    return {
        screen: ", ".join(f"{label} {count}" for label, count in counts.most_common()) or "clean"
        for screen, counts in sorted(drawn.items())
    }


def _inspect(service: httpx.Client, out: Path, screen_id: str, truth: str) -> Inspected:
    """Post one screen as a line controller does, raw, and draw the answer."""
    frame = read_frame(out / "screens" / f"{screen_id}.png")
    started_at = time.monotonic()
    answer = post_frame(service, screen_id, frame)
    seconds = time.monotonic() - started_at
    verdict = from_json(answer)
    (out / "overlays").mkdir(exist_ok=True)
    write(out / "overlays" / f"{screen_id}.png", frame, verdict)
    return Inspected(screen_id=screen_id, truth=truth, answer=answer, verdict=verdict, seconds=seconds)


def _table(inspected: Sequence[Inspected]) -> Table:
    columns = ("screen", "drawn", "verdict", "labels", "defects", "seconds", "patches/s")
    rows = [
        (
            item.screen_id,
            item.truth,
            describe_verdict(item.verdict),
            describe_labels(item.verdict),
            str(len(item.verdict.defects)),
            f"{item.seconds:.2f}",
            f"{item.verdict.proof.windows_inferred / item.seconds:.0f}",
        )
        for item in inspected
    ]
    return table(columns, rows)

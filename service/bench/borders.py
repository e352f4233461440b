"""What a bundle's further looks cost, at borders and turned: the same frames with them and without, end to end."""

from collections.abc import Iterator

from service.bench.report import Row, latency
from service.bench.work import Work
from service.traffic import Traffic

MOST = 1.5  # times the cost of looking once


def measure(work: Work) -> Iterator[Row]:
    """The bundle with its further looks and without."""
    if work.manifest.second_look.ratio_max == work.manifest.turned_look.ratio_max == 0:
        yield Row(name="further looks", found="the bundle asks for none")
        return
    with work.looking_once() as once:
        without = _loaded(once)
    with_it = _loaded(work)
    times = without.screens_per_s / with_it.screens_per_s
    yield Row(
        name="further looks",
        found=f"{times:.2f} times the time of looking once; {with_it.describe()}",
        limit=f"{MOST:g} times",
        passed=times <= MOST and not (without.failures or with_it.failures),
        figures={"times": times, **latency(with_it.durations), **with_it.figures()},
    )


def _loaded(work: Work) -> Traffic:
    with work.served() as served:
        return work.loaded(served)

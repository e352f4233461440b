from pathlib import Path

from service.bench import borders
from service.bench.work import Work
from tests.bundles import tiny_bundle


def test_a_bundle_that_looks_once_is_not_measured(tmp_path: Path) -> None:
    (row,) = borders.measure(Work(bundle=tiny_bundle(tmp_path / "bundle"), frames=[], seconds=1))
    assert (row.name, row.passed) == ("further looks", None)

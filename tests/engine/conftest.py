import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundles import add_called, tiny_bundle
from tests.engine.doubles import in_their_places
from tests.engine.doubles.cuda import Machine
from tests.engine.precisions import bundle_of_every_precision


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of five-patch batches and four labels; tests do not write into it."""
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def half_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A bundle with a graph that is called half-precision; the doubles do not look inside."""
    copy = shutil.copytree(bundle, tmp_path / "half")
    add_called(copy, "fp16")
    return copy


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """The doubles in the places of TensorRT and CUDA, and plans in a folder of the test's own."""
    with in_their_places(tmp_path / "cache") as machine:
        yield machine


@pytest.fixture(scope="session")
def precise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in every precision; tests do not write into it."""
    return bundle_of_every_precision(tmp_path_factory.mktemp("bundles") / "precise")

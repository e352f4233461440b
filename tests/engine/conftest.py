from pathlib import Path

import pytest

from tests.bundles import tiny_bundle
from tests.engine.precisions import bundle_of_every_precision


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of five-patch batches and four labels; tests do not write into it."""
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def precise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in every precision; tests do not write into it."""
    return bundle_of_every_precision(tmp_path_factory.mktemp("bundles") / "precise")

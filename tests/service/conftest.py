from pathlib import Path

import pytest

from tests.bundles import tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of five-patch batches and four labels; tests do not write into it."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")

"""A service as a process of its own that does not come to serve; that it serves is held wherever one is used."""

import platform
import re
from pathlib import Path

import pytest

from service.client import ClientError, serving

SAYS_AND_ENDS = ["platform"]  # a module that prints a line, and serves nothing


def test_how_its_log_ends_is_told_where_the_log_is_gone_with_it() -> None:
    told = re.escape(f"the service ended with exit code 0; the log ends: {platform.platform()}")
    with pytest.raises(ClientError, match=told), serving({}, module=SAYS_AND_ENDS):
        pass


def test_where_its_log_stays_is_told_where_it_stays(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with pytest.raises(ClientError, match=re.escape(f"; see {log}")), serving({}, log, module=SAYS_AND_ENDS):
        pass
    assert log.read_text().strip() == platform.platform()

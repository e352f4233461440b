"""What a service claims before it loads anything."""

import errno
import fcntl
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI

from service.client import free_port
from service.server import LOCK_FILE, serve
from service.settings import Settings, SettingsError


def loads_nothing(_: Callable[[], None]) -> FastAPI:
    raise AssertionError("a bundle was loaded")


def test_a_port_that_is_taken_is_found_out_before_a_bundle_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}.*in use"):
            serve(loads_nothing, Settings(port=port, state_dir=tmp_path))


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"INSPECT_HOST.*192\.0\.2\.1"):
        serve(loads_nothing, Settings(host="192.0.2.1", port=0, state_dir=tmp_path))


def test_a_record_is_kept_by_one_service(tmp_path: Path) -> None:
    settings = Settings(port=free_port(), state_dir=tmp_path / "state")
    with pytest.raises(AssertionError, match="a bundle was loaded"):  # the first one has it, and lets go of it
        serve(loads_nothing, settings)
    with (tmp_path / "state" / LOCK_FILE).open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="another service"):
            serve(loads_nothing, settings)
    with pytest.raises(AssertionError, match="a bundle was loaded"):
        serve(loads_nothing, settings)


def test_a_folder_that_cannot_be_locked_is_no_other_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SettingsError, match=r"INSPECT_STATE_DIR: .* cannot be locked: .*No locks available"):
        serve(loads_nothing, Settings(port=free_port(), state_dir=tmp_path))


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(SettingsError, match="INSPECT_STATE_DIR"):
        serve(loads_nothing, Settings(port=free_port(), state_dir=tmp_path / "state"))

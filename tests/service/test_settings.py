import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from engine import DEFAULT_BUNDLE
from service.settings import Settings, SettingsError, read_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith("INSPECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def write_config(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("INSPECT_CONFIG", str(path))


def test_defaults_are_loopback_and_the_embedded_bundle(tmp_path: Path) -> None:
    settings = read_settings()
    assert settings.host == "127.0.0.1"
    assert settings.bundle == DEFAULT_BUNDLE
    assert settings.frame_size is None
    assert settings.state_dir == tmp_path / "state" / "screen-inspection"


def test_state_folder_without_xdg_is_under_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_settings().state_dir == tmp_path / ".local" / "state" / "screen-inspection"


def test_environment_is_read_and_frame_size_is_height_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_PORT", "9000")
    monkeypatch.setenv("INSPECT_FRAME_SIZE", "5120x10240")
    settings = read_settings()
    assert settings.port == 9000
    assert settings.frame_size == (10240, 5120)


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_FRAME_SIZE", "")
    monkeypatch.setenv("INSPECT_CONFIG", "")
    assert read_settings().frame_size is None


def test_environment_stands_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_config(tmp_path / "line.toml", 'port = 9001\nframe_size = "640x480"\n', monkeypatch)
    monkeypatch.setenv("INSPECT_PORT", "9002")
    settings = read_settings()
    assert settings.port == 9002
    assert settings.frame_size == (480, 640)


def test_names_are_read_without_regard_to_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "line.toml"
    path.write_text('port = 9001\nhost = "line-3"\n')
    monkeypatch.setenv("inspect_config", str(path))
    monkeypatch.setenv("inspect_Port", "9002")
    settings = read_settings()
    assert (settings.host, settings.port) == ("line-3", 9002)


def test_empty_variable_leaves_the_file_its_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_config(tmp_path / "line.toml", "port = 9001\n", monkeypatch)
    monkeypatch.setenv("INSPECT_PORT", "")
    assert read_settings().port == 9001


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("INSPECT_PROT", "INSPECT_PORT"),
        ("INSPECT_FRAMESIZE", "INSPECT_FRAME_SIZE"),
        ("inspect_deadline", "INSPECT_DEADLINE_S"),  # names are read without regard to case
        ("INSPECT_CONFG", "INSPECT_CONFIG"),
    ],
)
def test_unknown_variable_is_refused_with_the_nearest_known_one(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"unknown setting {name.upper()}; did you mean {nearest}"):
        read_settings()


def test_unknown_key_of_the_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_config(tmp_path / "line.toml", "prot = 9001\n", monkeypatch)
    with pytest.raises(SettingsError, match="unknown setting prot; did you mean port"):
        read_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INSPECT_PORT", "70000"),
        ("INSPECT_PORT", "http"),
        ("INSPECT_FRAME_SIZE", "5120"),
        ("INSPECT_FRAME_SIZE", "0x10"),
        ("INSPECT_DEADLINE_S", "nan"),
        ("INSPECT_DEADLINE_S", "-1"),
        ("INSPECT_SELF_TEST_INTERVAL_S", "120"),  # a test would no longer be fresh when the next comes
        ("INSPECT_LOG_LEVEL", "loud"),
        ("INSPECT_BUNDLES", "/nowhere"),  # a misspelt folder would be an empty one
        ("INSPECT_MAX_BODY_BYTES", "0"),
        ("INSPECT_BATCH", "0"),
    ],
)
def test_value_out_of_range_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        read_settings()


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe"])
def test_unreadable_file_is_refused(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "line.toml"
    path.write_bytes(content)
    monkeypatch.setenv("INSPECT_CONFIG", str(path))
    with pytest.raises(SettingsError, match="INSPECT_CONFIG: cannot read"):
        read_settings()


def test_missing_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INSPECT_CONFIG", str(tmp_path / "absent.toml"))
    with pytest.raises(SettingsError, match="INSPECT_CONFIG"):
        read_settings()


def test_settings_cannot_change_under_a_running_app() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, "port", 1)  # noqa: B010 - mypy knows that it cannot


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("0.0.0.0", "http://127.0.0.1:9000"),  # noqa: S104 - asked, not listened on
        ("line-3", "http://line-3:9000"),
        ("::1", "http://[::1]:9000"),
        ("::", "http://[::1]:9000"),
    ],
)
def test_a_client_on_this_machine_finds_the_service_by_its_settings(host: str, url: str) -> None:
    assert Settings(host=host, port=9000).url == url

"""Whose fault it is that an image gives no frame: what the file holds is its sender's, all else is ours."""

from pathlib import Path

import numpy as np
import pytest

from service.images import Source, decode
from service.settings import Settings
from tests.service.apps import Device, is_problem, post, serve_device
from tests.service.pictures import JPEG, PNG, encode

FLAT = np.full((64, 72), 128, np.uint8)
OPAQUE = np.full((64, 72, 4), 255, np.uint8)  # which is left to Pillow, so that every check is run


def read(data: bytes, media_type: str) -> None:
    decode(Source(data=data, media_type=media_type), agreed=None, patch_px=8, max_pixels=10**6)


@pytest.mark.parametrize("name", ["_check", "_values", "plain_pixels"])
@pytest.mark.parametrize(
    "error",
    [AttributeError(), TypeError(), AssertionError(), KeyError(), OSError("truncated"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_a_fault_of_ours_is_not_said_to_be_the_images(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"service.images.{name}", fail)
    with pytest.raises(type(error)):
        read(encode(OPAQUE, PNG), PNG)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("isal.isal_zlib.decompressobj", PNG), ("PIL.Image.frombytes", PNG), ("simplejpeg.decode_jpeg", JPEG)],
)
def test_a_lack_of_memory_is_not_left_to_pillow(name: str, media_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(name, fail)
    with pytest.raises(MemoryError):
        read(encode(FLAT, media_type), media_type)


@pytest.mark.parametrize("name", ["PIL.Image.open", "PIL.ImageFile.ImageFile.load"])
def test_a_lack_of_memory_is_not_the_images_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(name, fail)
    with pytest.raises(MemoryError):
        read(encode(OPAQUE, PNG), PNG)


def test_it_is_answered_as_a_fault_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("service.images.plain_pixels", fail)
    with serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        assert is_problem(post(client, "one", FLAT), 500, "internal_error")

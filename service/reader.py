"""Bytes in memory as a file that is read: `io.BytesIO` would copy a body of 150 MiB before its header is looked at."""

import io


class Reader(io.RawIOBase):
    """A file over bytes that somebody else holds, and that do not change while it is read."""

    def __init__(self, data: bytes | memoryview) -> None:
        super().__init__()
        self._data = memoryview(data)
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, of which those behind the end hold nothing; see `io.IOBase.seek`.

        Raises:
            ValueError: it lies before the beginning.
        """
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        if at < 0:
            raise ValueError(f"there is no byte {at}")
        self._at = at
        return at

    def tell(self) -> int:
        """Where the next byte is read from."""
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, or all that are left; takes memory for what there is, whatever a header promised."""
        end = len(self._data) if size is None or size < 0 else self._at + size
        found = bytes(self._data[self._at : end])
        self._at += len(found)
        return found

"""What the process keeps of memory that nobody uses any more."""

import ctypes


def give_back() -> None:
    """Return freed memory to the machine, so that a swap leaves no more of it behind than the one before.

    glibc keeps what is freed in arenas of its own, and frames that come meanwhile tear them into pieces: over many
    swaps the process would grow by about a bundle, though nothing holds one. Other C libraries have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

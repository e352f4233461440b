"""Servers of several processes: none is lost from sight, none is left, and their memory is that of all of them."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from service.bench.peers.processes import Watch, descendants, held_bytes, none_left

MIB = 2**20
# a process that has an orphan, which is in a session of its own, says so and sleeps
ORPHAN = "setsid sleep 300 > /dev/null & echo started"
HOLDER = "import sys; held = b'\\1' * int(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_no_process_is_left_of_one_that_left_its_own() -> None:
    before = descendants(os.getpid())
    with none_left():
        subprocess.run(["sh", "-c", ORPHAN], check=True, stdout=subprocess.PIPE)
        (orphan,) = descendants(os.getpid()) - before
    assert descendants(os.getpid()) == before
    assert not Path(f"/proc/{orphan}").exists()


def test_none_is_left_after_an_interrupt_either() -> None:
    before = descendants(os.getpid())
    with suppress(KeyboardInterrupt), none_left():
        subprocess.run(["sh", "-c", ORPHAN], check=True, stdout=subprocess.PIPE)
        raise KeyboardInterrupt
    assert descendants(os.getpid()) == before


def test_what_ran_before_goes_on() -> None:
    with subprocess.Popen(["sleep", "300"]) as earlier:
        with none_left():
            pass
        assert earlier.poll() is None
        earlier.kill()


def test_the_memory_is_that_of_the_children_too() -> None:
    # below a shell of its own: whatever else this process started may end meanwhile
    command = ["sh", "-c", '"$0" "$@"; :', sys.executable, "-c", HOLDER, str(64 * MIB)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell,
        Watch(shell.pid) as watch,
    ):
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"held\n"
        assert held_bytes(shell.pid) > 64 * MIB
        watch.look()
        shell.communicate()
    assert watch.peak_bytes > 64 * MIB


def test_a_process_that_has_gone_holds_nothing() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert held_bytes(gone.pid) == 0

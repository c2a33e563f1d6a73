import os
import signal
import threading
import time

import pytest
from processes import run_python

from skipway.utils.stop_signals import StopFlag

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_a_signal_sets_the_flag_and_the_old_handler_comes_back(number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append("host"))
    try:
        with StopFlag() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            assert stop.requested and stop.name == number.name and not heard
        os.kill(os.getpid(), number)
        assert heard == ["host"]
    finally:
        signal.signal(number, before)


def test_the_first_name_stays():
    stop = StopFlag()
    stop.request("one")
    stop.request("two")
    assert stop.name == "one"


def test_other_threads_listen_to_nothing_and_break_nothing():
    before, found = [signal.getsignal(n) for n in SIGNALS], []

    def work():
        with StopFlag() as stop:
            found.extend([signal.getsignal(n) for n in SIGNALS])
            stop.request()
            found.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [*before, True]


def test_a_handler_that_python_cannot_put_back_is_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with StopFlag() as stop:
        assert not stop._previous


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), StopFlag():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("second, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_second_interrupt_ends_the_process_at_once(second, code):
    said = (
        "import os, signal; from skipway.utils.stop_signals import StopFlag\n"
        "with StopFlag():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        f"    os.kill(os.getpid(), signal.{second})\n"
        "    os._exit(7)"
    )
    assert run_python(said).returncode == code


def test_one_signal_that_comes_twice_at_once_is_one_request():  # as from timeout(1)
    code = (
        "import os, signal; from skipway.utils.stop_signals import StopFlag\n"
        "with StopFlag() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os._exit(7 if stop.name == 'SIGTERM' else 1)"
    )
    assert run_python(code).returncode == 7


HANGING = """
import ctypes, os, signal, sys, threading, time
from skipway.utils.stop_signals import StopFlag
def send(*numbers):
    for number in numbers:
        time.sleep(0.5)
        os.kill(os.getpid(), number)
stop = StopFlag()
stop.interrupts = True
with stop:
    threading.Thread(target=send, args=[getattr(signal, name) for name in sys.argv[2:]], daemon=True).start()
    if sys.argv[1] == "deferred":
        stop.defer()
    if sys.argv[1] == "done":
        stop.finish(0)
    mutex = ctypes.create_string_buffer(128)  # a signal ends a sleep, but no wait for a lock
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
    os._exit(9)
"""


@pytest.mark.parametrize(
    "state, names, code",
    [
        ("working", ["SIGTERM"], 75),
        ("working", ["SIGTERM", "SIGTERM"], 143),
        ("deferred", ["SIGINT", "SIGTERM"], 143),
        ("done", ["SIGTERM"], 0),
    ],
)
def test_native_code_that_hangs_swallows_no_signal(state, names, code):
    begun = time.monotonic()
    done = run_python(HANGING, state, *names)
    assert done.returncode == code and time.monotonic() - begun < 50
    assert done.stderr.count("\n") == int(code == 75) and "Traceback" not in done.stderr


def test_a_signal_before_the_command_line_is_loaded_counts(tmp_path):
    code = """
import builtins, os, signal, sys
from skipway.__main__ import main
load = builtins.__import__
def signalled(name, globals=None, locals=None, fromlist=(), level=0):
    if name == "skipway.cli" and "app" in (fromlist or ()):
        os.kill(os.getpid(), signal.SIGTERM)
    return load(name, globals, locals, fromlist, level)
builtins.__import__ = signalled
sys.argv = ["skipway", "train", "digits"]
main()
"""
    done = run_python(code, cwd=tmp_path)
    assert done.returncode == 75 and "stopped by SIGTERM" in done.stderr and not list(tmp_path.iterdir())

import io
import os
import pty
import sys
import warnings

import pytest

from skipway.utils import console as console_module
from skipway.utils.console import Console, ProgressBar, duration, print_warning


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Closed(io.StringIO):
    encoding = "utf-8"

    def write(self, text):
        raise BrokenPipeError


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_plain_lines_now_and_then(clock):
    out = io.StringIO()
    bar = Console(stream=out).bar("epoch 1/2", 100)
    for done in range(1, 101):
        clock[0] += 1.0
        bar.at(done, "400 images/s, 3% waiting for data")
    bar.done()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in out.getvalue() and "\x1b" not in out.getvalue()
    assert lines[0] == "epoch 1/2 30/100 (30%, 72 s left) 400 images/s, 3% waiting for data"


def test_a_terminal_has_one_line_that_is_drawn_over_and_cleared(clock):
    out = Terminal()
    console = Console(stream=out)
    bar = console.bar("epoch 1/2", 10)
    for done in range(1, 11):
        clock[0] += 1.0
        bar.at(done, "x" * 500)
    bar.done("over")
    drawn = out.getvalue()
    assert drawn.count("\n") == 1 and drawn.endswith("\r\x1b[Kover\n")
    assert drawn.count("\r\x1b[K") == 11 and all(len(line) < 100 for line in drawn.split("\r\x1b[K")[:-1])


def test_a_bar_drawn_too_often_costs_nothing(clock):
    out = Terminal()
    bar = Console(stream=out).bar("b", 0)
    for _ in range(1000):
        bar.at(1, note=lambda: pytest.fail("the note is not shown"))
    assert out.getvalue() == "" and bar.total == 1


def test_a_note_is_computed_when_it_is_shown(clock):
    out = Terminal()
    bar = Console(stream=out).bar("b", 2)
    clock[0] += 1.0
    bar.at(1, lambda: "9 rows/s")
    assert out.getvalue().endswith("9 rows/s")


def test_lines_are_safe_whatever_stands_in_them():
    out = io.StringIO()
    Console(stream=out).print("a\x1b[2J\nb\u202e\udcff")
    assert out.getvalue() == "a\\x1b[2J\nb\\u202e\\udcff\n"


def test_a_stream_that_knows_few_characters_gets_the_others_spelt_out():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Console(stream=stream).print("runs/Бilder-é")
    assert raw.getvalue() == b"runs/\\u0411ilder-\\xe9\n"


def test_a_closed_pipe_is_said_to_no_more():
    console = Console(stream=Closed())
    console.print("one")
    assert console.quiet and not console.live
    console.print("two")


def test_a_closed_stream_and_no_stream_stop_nothing(monkeypatch):
    stream = io.StringIO()
    console = Console(stream=stream)
    stream.close()
    bar = console.bar("b", 3)
    bar.last_print = -1e9
    bar.at(1)
    bar.done()
    monkeypatch.setattr(sys, "stdout", None)
    assert Console().quiet
    Console().print("nothing")


def test_a_full_disk_stops_nothing():
    with open("/dev/full", "w") as full:
        console = Console(stream=full)
        console.print("x")
        assert console.quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_quiet_is_quiet():
    out = Terminal()
    console = Console(quiet=True, stream=out)
    console.print("x")
    bar = console.bar("x", 2)
    bar.last_print = -1e9
    bar.at(1)
    bar.done("x")
    assert out.getvalue() == ""


def test_a_real_terminal_is_taken_for_one():
    main, other = pty.openpty()
    with os.fdopen(other, "w") as stream:
        console = Console(stream=stream)
        assert console.live
        bar = ProgressBar(console, "epoch 1/1", 4)
        bar.last_print = -1e9
        bar.at(2, "9 images/s")
        assert b"\r\x1b[Kepoch 1/1 2/4 (50%) 9 images/s" in os.read(main, 1000)
    os.close(main)


@pytest.mark.parametrize(
    "seconds, said",
    [(0.04, "0.0 s"), (3.44, "3.4 s"), (48, "48 s"), (200, "3 min 20 s"), (5999.9, "1 h 40 min"), (7500, "2 h 5 min")],
)
def test_durations_read_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_a_warning_of_torch_is_one_line(capsys):
    text = "The operator 'aten::x' is not supported on MPS.\n It runs on the CPU. (Triggered internally at /a/b.mm:13.)"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = print_warning
        warnings.warn(text, UserWarning, stacklevel=1)
    assert capsys.readouterr().err == (
        "skipway: warning: The operator 'aten::x' is not supported on MPS. It runs on the CPU.\n"
    )

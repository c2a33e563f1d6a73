"""A disk that fails, and processes that are killed, at any call."""

import os
import signal
import traceback

from skipway.errors import StorageError
from skipway.utils import atomic_files


class FaultyOs:
    """Stands in for `os` within durable: the k-th call that touches the disk goes wrong, all others are real."""

    COUNTED = ("open", "write", "fsync", "close", "replace", "rename", "mkdir")

    def __init__(self, when, fault, counted=COUNTED):
        self.when, self.fault, self.counted, self.log = when, fault, counted, []

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in self.counted:
            return real

        def call(*arguments):
            self.log.append(name)
            return self.fault(name, real, arguments) if len(self.log) == self.when else real(*arguments)

        return call


def failing(code):
    def fault(name, real, arguments):
        if name == "close":  # the kernel frees the descriptor even when close reports an error
            real(*arguments)
        if name == "write":  # a disk fills in the middle of a write, not before it
            real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        raise OSError(code, os.strerror(code))

    return fault


def failing_after(code):
    """Report an error for what took place, as a network disk does whose first answer was lost."""

    def fault(name, real, arguments):
        real(*arguments)
        raise OSError(code, os.strerror(code))

    return fault


def killing(name, real, arguments):
    if name == "write":
        real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def forked(work):
    """Run `work` in a child process; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed, see its traceback"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def each_fault(monkeypatch, fault, work, check, counted=FaultyOs.COUNTED):
    """The anomaly loop: fail the 1st call, the 2nd, ... until the work completes untouched; how many there were."""
    for when in range(1, 1000):
        faulty = FaultyOs(when, fault, counted)
        with monkeypatch.context() as patch:
            patch.setattr(atomic_files, "os", faulty)
            if len(faulty.log) < when:
                try:
                    work(when)
                except StorageError as error:
                    raised = str(error)
                else:
                    raised = None
        if len(faulty.log) < when:
            assert raised is None
            return when - 1
        check(when, raised, faulty.log)
    raise AssertionError("the work never ended")


def each_kill(work, check):
    """SIGKILL at the 1st call, the 2nd, ... until the work completes untouched; how many there were."""
    for when in range(1, 1000):

        def child(when=when):
            atomic_files.os = FaultyOs(when, killing)
            work(when)

        ended = forked(child)
        check(when)
        if ended == 0:
            return when - 1
        assert ended == signal.SIGKILL
    raise AssertionError("the work never ended")


def temporaries(folder):
    return [name for _, folders, files in os.walk(folder) for name in folders + files if ".tmp-" in name]

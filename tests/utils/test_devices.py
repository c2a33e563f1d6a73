"""The number of threads: each limit from fabricated files, and the measured choice on a busy machine."""

import os

import pytest
import torch
from processes import run_python

from skipway.utils import devices
from skipway.utils.devices import ThreadCount, available_cores, available_threads, fastest_threads, set_threads

V2 = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
OTHER = (
    "22 28 0:21 / /proc rw,relatime shared:13 - proc proc rw\n"
    "39 31 0:37 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
)


@pytest.fixture(autouse=True)
def eight_free_cores(monkeypatch):
    """Eight cores, all of them allowed, on a Linux whose Python has no `process_cpu_count`."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def system(tmp_path):
    """A function that writes files below a root, and returns the root."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


def with_quotas(system, group, mounts, quotas):
    """A root with a process in the cgroups `group`, and {file below sys/fs/cgroup: content}."""
    root = system(proc__self__cgroup=group, proc__self__mountinfo=OTHER + mounts)
    for name, content in quotas.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_cores_are_the_limit_of_a_system_that_has_no_other(tmp_path, monkeypatch):
    assert available_cores(tmp_path) == ThreadCount(8, "cores")
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS and Windows
    assert available_cores(tmp_path) == available_threads(root=tmp_path) == ThreadCount(8, "cores")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path).count == 1


def test_affinity_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert available_cores(tmp_path) == ThreadCount(2, "CPU affinity")
    monkeypatch.setattr(os, "process_cpu_count", lambda: 1, raising=False)
    assert available_cores(tmp_path) == ThreadCount(1, "CPU affinity")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_a_process_that_is_bound_to_one_core_computes_with_one_thread():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from skipway.utils.devices import available_threads; print(available_threads().count)"
    )
    output = run_python(code, check=True).stdout
    assert output == "1\n"


@pytest.mark.parametrize(
    "group, top, quotas, count",
    [
        ("/", "/", {"cpu.max": "300000 100000\n"}, 3),  # a namespace, as in most containers
        ("/", "/", {"cpu.max": "max 100000\n"}, 8),
        ("/", "/", {}, 8),  # the root of the host has no such file
        ("/", "/", {"cpu.max": "250000 100000\n"}, 2),  # rounded down
        ("/", "/", {"cpu.max": "50000 100000\n"}, 1),  # but not to nothing
        ("/", "/", {"cpu.max": "9900000 100000\n"}, 8),
        ("/a/b", "/", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),  # a parent limits
        ("/a/b", "/", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "400000 100000\n"}, 2),
        ("/a/b", "/", {"other/cpu.max": "100000 100000\n"}, 8),
        ("/gone/b", "/", {"cpu.max": "300000 100000\n"}, 3),  # a path that the mount does not have
        ("/docker/c", "/docker/c", {"cpu.max": "300000 100000\n"}, 3),  # the host's path, of which the mount has a part
        ("/docker/c/d", "/docker/c", {"d/cpu.max": "200000 100000\n"}, 2),
        ("/docker/c", "/docker/other", {"cpu.max": "300000 100000\n"}, 3),
        ("/../../c", "/", {"cpu.max": "300000 100000\n"}, 3),  # outside of the namespace
    ],
)
def test_a_quota_of_cgroup_v2_limits(system, group, top, quotas, count):
    root = with_quotas(system, f"0::{group}\n", V2.format(top=top), quotas)
    assert available_cores(root) == ThreadCount(count, "cgroup CPU quota" if count < 8 else "cores")


@pytest.mark.parametrize(
    "group, top, folder, quota, count",
    [
        ("/", "/", "", "300000", 3),
        ("/", "/", "", "-1", 8),
        ("/a/b", "/", "a/", "150000", 1),
        ("/docker/c", "/docker/c", "", "200000", 2),
        ("/docker/c", "/", "", "200000", 2),
        ("/docker/c", "/", "docker/c/", "200000", 2),
    ],
)
def test_a_quota_of_cgroup_v1_limits(system, group, top, folder, quota, count):
    names = {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": "100000\n"}
    quotas = {f"cpu,cpuacct/{folder}{name}": content for name, content in names.items()}
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    root = with_quotas(system, f"8:pids:/x\n3:cpu,cpuacct:{group}\n0::/\n", V1.format(top=top) + unified, quotas)
    assert available_cores(root).count == count


def test_a_path_of_any_bytes_is_followed(system):
    root = with_quotas(system, "", V2.format(top="/"), {"gr\u00fcn\u00a0/cpu.max": "200000 100000\n"})
    (root / "proc/self/cgroup").write_bytes("0::/gr\u00fcn\u00a0\n".encode())
    assert available_cores(root).count == 2


@pytest.mark.parametrize(
    "value, count",
    [("3", 3), ("4,2", 4), (" 2 ", 2), ("99", 8), ("", 8), ("0", 8), ("-2", 8), ("many", 8), ("\u00b2", 8), (",2", 8)],
)
def test_openmp_limits_and_nonsense_does_not(tmp_path, monkeypatch, value, count):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert available_threads(root=tmp_path) == ThreadCount(count, "OMP_NUM_THREADS" if count < 8 else "cores")
    assert available_cores(tmp_path).count == 8


def test_processes_share_the_cores_but_not_what_openmp_has_for_each(tmp_path, monkeypatch):
    assert [available_threads(n, tmp_path).count for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [available_threads(n, tmp_path).count for n in (1, 2, 3, 8)] == [3, 3, 2, 1]


@pytest.mark.parametrize("running, is_busy", [(1, False), (2, True), (20, True)])
def test_measured_is_only_on_a_busy_machine(system, monkeypatch, running, is_busy):
    monkeypatch.setattr(devices, "_measured", lambda counts: {count: 0.25 * count for count in counts})
    root = system(proc__loadavg=f"90.00 90.00 90.00 {running}/300 4711\n")
    available = ThreadCount(8, "cores")
    threads = fastest_threads(available, root)
    assert (threads is available) == (not is_busy)
    if is_busy:
        assert threads.count == 1 and "a test step takes 250 ms with 1, " in threads.reason
        assert threads.reason.endswith("2000 ms with 8")
    assert fastest_threads(ThreadCount(1, "cores"), root).reason == "cores"


def test_the_fastest_count_is_chosen_and_idle_cores_are_tried(system, monkeypatch):
    monkeypatch.setattr(devices, "_measured", lambda counts: {n: abs(n - 5) + 1.0 for n in counts})
    root = system(proc__loadavg="0.00 0.00 0.00 4/300 4711\n")  # this one and three others: five cores are idle
    assert fastest_threads(ThreadCount(8, "cores"), root).count == 5
    monkeypatch.setattr(devices, "_measured", lambda counts: {n: 1.0 if n == 8 else 1.1 for n in counts})
    assert fastest_threads(ThreadCount(8, "cores"), root).count == 1  # about as fast
    monkeypatch.setattr(devices, "_measured", lambda counts: {n: 1 / n for n in counts})
    assert fastest_threads(ThreadCount(8, "cores"), root).count == 8


def test_the_load_average_serves_where_nothing_else_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_measured", lambda counts: {count: float(count) for count in counts})
    monkeypatch.setattr(os, "getloadavg", lambda: (6.0, 0.0, 0.0), raising=False)  # macOS
    assert fastest_threads(ThreadCount(8, "cores"), tmp_path).count == 1
    monkeypatch.delattr(os, "getloadavg")  # Windows
    assert fastest_threads(ThreadCount(8, "cores"), tmp_path).count == 8


def test_measuring_leaves_random_numbers_alone(one_thread):
    state = torch.get_rng_state()
    seconds = devices._measured({1, 2})
    assert list(seconds) == [1, 2] and min(seconds.values()) > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_of_a_training_are_set_and_a_measured_choice_is_printed(one_thread, monkeypatch):
    monkeypatch.setattr(devices, "available_cores", lambda root: ThreadCount(6, "cores"))
    lines = []

    def threads_for(requested=None, table=False):
        set_threads(requested, table=table, report=lines.append)
        return torch.get_num_threads()

    monkeypatch.setattr(devices, "fastest_threads", lambda available: available)
    assert threads_for() == 6 and threads_for(table=True) == 1
    monkeypatch.setattr(devices, "fastest_threads", lambda available: ThreadCount(2, "the cores are busy"))
    assert (threads_for(requested=3), threads_for(requested=3, table=True), threads_for(table=True)) == (3, 3, 1)
    assert not lines
    assert threads_for() == 2 and lines == ["threads: 2, because the cores are busy"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert threads_for() == 3 and len(lines) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_for() == 2


def test_the_file_loads_no_torch():
    code = "import sys, skipway.utils.devices; print('torch' in sys.modules)"
    assert run_python(code, check=True).stdout == "False\n"

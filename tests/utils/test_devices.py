"""Devices on faked machines, and the number of threads: each limit from fabricated files, and the measured choice."""

import os

import pytest
import torch
from processes import run_python

from skipway.errors import InputError
from skipway.utils import devices
from skipway.utils.devices import (
    LARGE_TABLE,
    ThreadCount,
    available_cores,
    available_threads,
    current_device,
    device_exists,
    device_for,
    device_name,
    device_names,
    fastest_threads,
    has_bf16,
    has_float64,
    refuse_excess_processes,
    set_threads,
)

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


@pytest.mark.parametrize("amx, avx, wanted", [(True, False, True), (False, True, True), (False, False, False)])
def test_bf16_is_taken_where_the_processor_has_it(monkeypatch, amx, avx, wanted):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert has_bf16("cpu") is wanted


@pytest.fixture
def machine(monkeypatch):
    """Fake the devices that torch finds, by kind."""

    def fake(**counts):
        for kind in ("cuda", "xpu", "mps"):
            module = torch.get_device_module(kind)
            monkeypatch.setattr(module, "is_available", lambda kind=kind: kind in counts)
            monkeypatch.setattr(module, "device_count", lambda kind=kind: counts.get(kind, 0))

    return fake


def test_auto_chooses_an_accelerator_that_is_there(machine):
    for counts, expected in (({}, "cpu"), ({"mps": 1}, "mps"), ({"xpu": 2}, "xpu"), ({"xpu": 1, "cuda": 2}, "cuda")):
        machine(**counts)
        assert device_for("auto") == expected and device_for("cpu") == "cpu"


def test_auto_leaves_tables_on_the_cpu_unless_they_are_large(machine):
    machine(cuda=1)
    assert [device_for("auto", rows=rows) for rows in (1, LARGE_TABLE - 1, LARGE_TABLE)] == ["cpu", "cpu", "cuda"]
    assert device_for("cuda", rows=1) == "cuda"


def test_devices_have_an_index(machine):
    machine(cuda=2, mps=1)
    assert device_names() == ["cpu", "cuda:0", "cuda:1", "mps"]
    assert [device_for(name) for name in ("cuda", "cuda:1", "mps")] == ["cuda", "cuda:1", "mps"]
    assert not device_exists("cuda:2") and not device_exists("xpu") and device_exists("cpu")


@pytest.mark.parametrize("name", ["cuda:2", "xpu", "xpu:0"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine, name):
    machine(cuda=2)
    words = (
        f"cannot use --device {name}: expected a device that torch finds here .cpu, cuda:0, cuda:1., got {name}. Choose"
    )
    with pytest.raises(InputError, match=words):
        device_for(name)


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:-1", "cpu:0", "mps:1", "", "CUDA"])
def test_a_text_that_is_no_device_is_refused(name):
    with pytest.raises(InputError, match="invalid device: expected auto, cpu, cuda, cuda:1, xpu or mps, got .* Choose"):
        device_for(name)


def test_each_process_needs_a_device(machine):
    machine(cuda=2)
    refuse_excess_processes(2, "auto")
    refuse_excess_processes(3, "cpu")
    refuse_excess_processes(1, "cuda:1")
    words = "cannot train in 3 processes on cuda: expected at most as many as devices, which are 2 here. Use --nproc 2"
    for requested in ("auto", "cuda"):
        with pytest.raises(InputError, match=words):
            refuse_excess_processes(3, requested)
    with pytest.raises(
        InputError, match="cannot train in 2 processes on cuda:1: expected a kind of device.*--device cuda"
    ):
        refuse_excess_processes(2, "cuda:1")
    machine()
    refuse_excess_processes(8, "auto")


def test_what_a_kind_of_device_computes(monkeypatch):
    emulated = []
    for kind in ("cuda", "xpu"):
        module = torch.get_device_module(kind)
        monkeypatch.setattr(
            module, "is_bf16_supported", lambda including_emulation: emulated.append(including_emulation)
        )
        monkeypatch.setattr(module, "get_device_name", lambda device, kind=kind: f"{kind} card at {device}")
    assert not any(map(has_bf16, ("cuda:1", "xpu", "mps"))) and emulated == [False, False]
    assert [has_float64(device) for device in ("cpu", "cuda:1", "xpu", "mps")] == [True, True, True, False]
    assert [device_name(device) for device in ("cpu", "mps", "cuda:1")] == ["cpu", "mps", "cuda card at cuda:1"]


def test_the_current_device_is_that_of_before_again(monkeypatch):
    places = [0]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: places[-1])
    monkeypatch.setattr(torch.cuda, "set_device", places.append)
    with pytest.raises(KeyError), current_device("cuda:3"):
        raise KeyError
    for name in ("cpu", "cuda", "mps"):
        with current_device(name):
            pass
    assert places == [0, 3, 0]


def test_seeds_draw_the_values_of_torch_and_leave_accelerators_alone_on_a_cpu(monkeypatch):
    torch.manual_seed(5)
    expected = torch.rand(3)
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    devices.seed_random(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
    assert seeds == []
    devices.seed_random(5, torch.device("mps"))
    assert seeds == [5]

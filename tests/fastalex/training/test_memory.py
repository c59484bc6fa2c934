"""Peak and available memory, and batches that do not fit."""

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.training import memory
from fastalex.training.memory import check_memory, does_not_fit, stages_memory

CPU = torch.device("cpu")
BATCH_OF_1002 = r"a batch size of 1002 does not fit .*needs .* a batch size of about (9\d\d|1000) would fit"


def test_a_batch_that_cannot_fit_is_refused_and_the_largest_that_can_is_named(config, monkeypatch):
    (stage,) = stages_memory(config)
    there = stage.total(1000)
    monkeypatch.setattr(memory, "_available_per_device", lambda _: [there])
    with pytest.raises(ConfigurationError, match=BATCH_OF_1002):
        check_memory(replace(config, recipe=replace(config.recipe, batch_size=1002)))
    check_memory(replace(config, recipe=replace(config.recipe, batch_size=1000)))
    monkeypatch.setattr(memory, "_available_per_device", lambda _: None)  # unknown
    check_memory(replace(config, recipe=replace(config.recipe, batch_size=10**6)))


def test_what_failed_is_never_recommended(config):
    for plenty in (10**15, None):
        error = does_not_fit(config, "CUDA out of memory", {0: plenty})
        assert "a batch size of about 6 would fit" in str(error)  # 8 did not; micro-batches are pairs
    assert "not even the smallest batch would fit" in str(does_not_fit(config, "CUDA out of memory", {0: 1}))


def test_a_worker_counts_its_own_stages(config):
    recipe = replace(config.recipe, batch_size=1000)
    names = config.parallel.split[0]
    plan = replace(
        config.parallel, devices=(CPU, CPU), layout=Layout(1, 2, 2), split=(names[:2], names[2:]), schedule="1f1b"
    )
    config = replace(config, parallel=plan, recipe=recipe)
    stages = stages_memory(config)
    there = stages[1].total(500)
    assert stages[1].total(1000) < stages[0].total(500)  # the first stage would not fit into that
    assert "about 500 would fit" in str(does_not_fit(config, "out of memory", {1: there}))
    assert "about 500 would fit" not in str(does_not_fit(config, "out of memory", {0: there, 1: there}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpus_are_asked_by_another_process():
    (free,) = memory._available_per_device(ParallelPlan.single(torch.device("cuda", 0), ()))
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory


def test_memory_of_this_machine_is_known():
    available = memory.available_bytes(torch.device("cpu"))
    assert available is not None
    assert 2**20 < available < 2**50
    assert memory.peak_bytes(torch.device("cpu")) >= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- control groups ---------------------------------------------------------------------------------------------------

MB = 2**20


def fake_machine(root: Path, groups: str, mounts: str = "", *, available: int = 20_000) -> Path:
    """A root folder of a machine; sizes are in MB."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 32000000 kB\nMemAvailable:   {available * 1024} kB\nHugePages: 0\n")
    (root / "proc/self/cgroup").write_text(groups)
    if mounts:
        (root / "proc/self/mountinfo").write_text(mounts)
    return root


def group_of_version_2(folder: Path, limit: int | str, current: int, cache: int = 0, high: int | str = "max") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("memory.max", limit), ("memory.high", high)):
        (folder / name).write_text(f"{value * MB if isinstance(value, int) else value}\n")
    (folder / "memory.current").write_text(f"{current * MB}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile {cache * MB}\ninactive_file {cache * MB}\nactive_file 0\n")


def group_of_version_1(folder: Path, limit: int, usage: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit * MB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{usage * MB}\n")
    (folder / "memory.stat").write_text(f"cache 7\ninactive_file 7\ntotal_inactive_file {cache * MB}\n")


def available_in(root: Path) -> float:
    available = memory.available_bytes(CPU, root)
    assert available is not None
    return available / MB


def test_without_a_limit_the_machine_counts(tmp_path):
    root = fake_machine(tmp_path, "0::/user.slice\n")
    group_of_version_2(tmp_path / "sys/fs/cgroup/user.slice", "max", 5000)
    assert available_in(root) == 20_000
    assert memory.memory_limit(root) == memory.memory_limit(tmp_path / "nowhere")


@pytest.mark.parametrize(("inner", "outer", "free"), [(500, 300, 200), (300, 500, 200), ("max", 300, 200)])
def test_the_smallest_limit_of_nested_groups_counts(tmp_path, inner, outer, free):
    root = fake_machine(tmp_path, "0::/job/step/task\n")
    top = tmp_path / "sys/fs/cgroup"
    group_of_version_2(top / "job/step/task", inner, 100)
    group_of_version_2(top / "job/step", "max", 100)
    group_of_version_2(top / "job", outer, 100)
    (top / "cgroup.controllers").write_text("memory\n")  # the topmost group has no limit
    assert available_in(root) == free
    assert memory.memory_limit(root) == 300 * MB


def test_page_cache_counts_as_free(tmp_path):
    root = fake_machine(tmp_path, "0::/job\n")
    group_of_version_2(tmp_path / "sys/fs/cgroup/job", 300, 290, cache=250)
    assert available_in(root) == 300 - 40


def test_a_limit_that_slows_down_counts_too(tmp_path):
    root = fake_machine(tmp_path, "0::/job\n")
    group_of_version_2(tmp_path / "sys/fs/cgroup/job", "max", 100, high=300)
    assert available_in(root) == 200


def test_a_group_that_is_full_leaves_nothing(tmp_path):
    root = fake_machine(tmp_path, "0::/job\n")
    group_of_version_2(tmp_path / "sys/fs/cgroup/job", 300, 310)
    assert available_in(root) == 0


def test_groups_of_version_1(tmp_path):
    root = fake_machine(tmp_path, "9:name=systemd:/\n5:cpu,cpuacct:/\n4:memory:/slurm/job_1/step_0\n0::/\n")
    top = tmp_path / "sys/fs/cgroup/memory"
    unlimited = (2**63 - 4096) // MB
    group_of_version_1(top, unlimited, 9000)
    group_of_version_1(top / "slurm", unlimited, 8000)
    group_of_version_1(top / "slurm/job_1", 300, 200, cache=150)
    group_of_version_1(top / "slurm/job_1/step_0", 2000, 100)
    (tmp_path / "sys/fs/cgroup/unified").mkdir()
    assert available_in(root) == 250
    assert memory.memory_limit(root) == 300 * MB


def test_a_container_sees_its_own_group_as_the_topmost(tmp_path):
    """Without a namespace of its own, the path of its group is that of the host."""
    mounts = "31 23 0:27 /docker/4f2 /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
    root = fake_machine(tmp_path, "0::/docker/4f2\n", mounts)
    group_of_version_2(tmp_path / "sys/fs/cgroup", 300, 100)
    assert available_in(root) == 200
    for groups in ("0::/\n", "0::/../other\n", "0::/on/the/host\n", ""):
        (root / "proc/self/cgroup").write_text(groups)
        assert available_in(root) == 200, groups


def test_the_mount_table_says_where_groups_lie(tmp_path):
    mounts = (
        "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "36 25 0:32 / /sys/fs/cg\\040groups/mem rw,relatime shared:9 - cgroup none rw,memory,hugetlb\n"
    )
    root = fake_machine(tmp_path, "4:memory,hugetlb:/job\n", mounts)
    group_of_version_1(tmp_path / "sys/fs/cg groups/mem/job", 300, 100)
    assert available_in(root) == 200


def test_strange_files_are_no_limit(tmp_path):
    root = fake_machine(tmp_path, "nonsense\n0::/job\n", "nonsense\n")
    group_of_version_2(tmp_path / "sys/fs/cgroup/job", "many", 100)
    assert available_in(root) == 20_000
    (root / "proc/meminfo").write_text("MemTotal: 5 kB\n")
    assert memory.available_bytes(CPU, root) is None

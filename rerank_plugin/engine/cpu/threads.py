"""The number of threads that a model computes with on a CPU."""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import torch

#: The file that lists the control groups of this process, and the folder of all of them.
MEMBERSHIP = Path("/proc/self/cgroup")
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def use_threads(threads: int | None) -> None:
    """Let torch compute with a number of threads, in this thread and in those that start later.

    Args:
        threads: The number; default torch's own, but no more than the CPUs of this process.
    """
    count = threads or default_threads()
    if count != torch.get_num_threads():
        torch.set_num_threads(count)


def default_threads() -> int:
    """Return torch's number of threads, or that of the CPUs of this process if it is smaller.

    torch counts the CPUs that a process may run on, but not the share of them that a container
    is limited to.
    """
    return min(torch.get_num_threads(), usable_cpus())


def usable_cpus(membership: Path = MEMBERSHIP, control_groups: Path = CONTROL_GROUPS) -> int:
    """Return the number of CPUs that this process may use: its affinity, and its container's quota.

    Args:
        membership: Lists the control groups of the process.
        control_groups: The folder of all control groups.
    """
    # Only Linux has affinities.
    has_affinity = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quotas = [max(1, ceil(quota)) for quota in cpu_quotas(membership, control_groups)]
    return min([cpus, *quotas])


def cpu_quotas(membership: Path, control_groups: Path) -> Iterator[float]:
    """Yield the CPU quotas of the control groups of this process and of those around them.

    A group has `cpu.max` in version 2, `cpu.cfs_quota_us` and `cpu.cfs_period_us` in version 1
    (Linux, admin-guide/cgroup-v2 and scheduler/sched-bwc).
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = control_groups / "cpu" if controllers else control_groups
        # In a container the name may be that of the host, whose folder is not there.
        group = root / name.lstrip("/")
        for folder in (group, *group.parents):
            yield from cpu_quota(folder)
            if folder == root:
                break


def cpu_quota(group: Path) -> Iterator[float]:
    """Yield the CPU quota of a control group, if it has one."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8").strip()
                for name in ("quota", "period")
            )
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)
    except (OSError, ValueError):
        # Not this version, or a format that is not known: no limit is assumed.
        return

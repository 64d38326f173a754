"""The machine that the numbers are from: its cores, its limits, and its description for the record."""

import os
import platform
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

FILES_WANTED = 65536


@dataclass(frozen=True)
class Cores:
    """The server has a core to itself; the load generator and the harness, which sleeps meanwhile, have another."""

    server: int
    load: int

    @classmethod
    def choose(cls) -> "Cores":
        """The first two cores that this process may use, so that `taskset -c 2,4` chooses others."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(server=allowed[0], load=allowed[min(1, len(allowed) - 1)])

    @property
    def shared(self) -> bool:
        return self.server == self.load


def raise_file_limit() -> None:
    """Allows as many open files as can be had, since a case has 10,000 connections and the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < FILES_WANTED:
        with suppress(ValueError):  # not root
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_WANTED, FILES_WANTED))


def _package_versions() -> dict[str, str]:
    """Of what the questions use beside the loops."""
    versions = {}
    for package in ("aiohttp", "aiofiles", "anyio"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def describe(cores: Cores) -> dict[str, object]:
    """What a reader needs in order to weigh the numbers."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "server core": cores.server,
        "load core": cores.load,
        "load average": os.getloadavg()[0],
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "python build": sys.version,
        "packages": _package_versions(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":  # arm64 kernels do not write one
            return value.strip()
    return "unknown"

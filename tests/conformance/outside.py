"""Suites that come in an sdist: fetched, and given an environment of their own, in a folder that git ignores.

Nothing of them is kept in the project. What has been fetched once is used again.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tarfile
import typing

from tests.conformance.worker import ROOT, Place

SHIM: typing.Final = pathlib.Path(__file__).with_name("shim")
FOLDER: typing.Final = ROOT / ".build" / "conformance" / "{}.{}".format(*sys.version_info)


@dataclasses.dataclass(frozen=True)
class Sdist:
    """A package whose tests are wanted: its version, and what pip must install to run them."""

    package: str
    version: str
    needs: tuple[str, ...]

    @property
    def folder(self) -> pathlib.Path:
        """The unpacked sdist."""
        return self._home / f"{self.package}-{self.version}"

    def place(self) -> Place:
        """An environment with all that is needed, uringloop as it stands in the source tree, and the shim."""
        imports = self._home / "imports"
        if not (self._home / "ready").exists():
            self._make(imports)
        return Place(
            str(self._home / "venv" / "bin" / "python"), (SHIM, imports), {"CONFORMANCE_SDIST": str(self.folder)}
        )

    @property
    def _home(self) -> pathlib.Path:
        return FOLDER / self.package

    def _make(self, imports: pathlib.Path) -> None:
        shutil.rmtree(self._home, ignore_errors=True)
        imports.mkdir(parents=True)
        (imports / "uringloop").symlink_to(ROOT / "uringloop")
        (imports / f"{self.package}_tests").symlink_to(self.folder / "tests")  # `tests` is our own folder's name
        download = [*PIP, "download", "--no-deps", "--no-binary", self.package, "--dest", str(self._home)]
        _run(sys.executable, *download, f"{self.package}=={self.version}")
        with tarfile.open(self._home / f"{self.package}-{self.version}.tar.gz") as sdist:
            sdist.extractall(self._home, filter="data")
        _run(sys.executable, "-m", "venv", str(self._home / "venv"))
        _run(str(self._home / "venv" / "bin" / "python"), *PIP, "install", "cffi", *self.needs)
        (self._home / "ready").touch()


PIP: typing.Final = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed\n{done.stdout}")

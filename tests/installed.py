"""The wheel as a user has it: built, and installed in an environment of its own, from which the repository is not
seen."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT


@dataclass(frozen=True)
class Installed:
    """`dist` holds the sdist and the wheel that was built of it, `environment` has the wheel installed."""

    dist: Path
    environment: Path

    @property
    def wheel(self) -> Path:
        return next(self.dist.glob("*.whl"))

    @property
    def sdist(self) -> Path:
        return next(self.dist.glob("*.tar.gz"))

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    def env(self) -> dict[str, str]:
        """Variables of a shell in which the environment is active."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        path = f"{self.environment / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"
        return {**kept, "PATH": path, "VIRTUAL_ENV": str(self.environment), "COLUMNS": "120"}

    def run(self, *command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A command in the environment, its output and errors apart."""
        words = list(map(str, command))
        return subprocess.run(
            words, cwd=cwd, env=self.env(), capture_output=True, text=True, timeout=300, check=False
        )


def build(source: Path, out: Path, *options: str) -> None:
    """An sdist of a folder and a wheel of that sdist; `--wheel`: a wheel of the folder."""
    _done([sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out), str(source)], {}, out)


def install(folder: Path) -> Installed:
    """Build, make an environment, install the wheel alone; what it needs comes from the packages of the tests."""
    made = Installed(folder / "dist", folder / "environment")
    build(ROOT, made.dist)
    _done([sys.executable, "-m", "venv", str(made.environment)], {}, folder)
    _done([str(made.python), "-m", "pip", "install", "--no-deps", "--no-index", str(made.wheel)], made.env(), folder)
    packages = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    # The .pth files in there are not read: an editable install of the repository stays unseen
    place = made.environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (place / "dependencies.pth").write_text("\n".join(sorted(packages)) + "\n")
    return made


def _done(command: list[str], env: Mapping[str, str], cwd: Path) -> None:
    cwd.mkdir(parents=True, exist_ok=True)
    ended = subprocess.run(
        command, cwd=cwd, env=dict(env) or None, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}{ended.stderr}"

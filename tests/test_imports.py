"""What a command imports, each in a process of its own: the light ones answer at once, and analysis stands alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY

COMMAND = "from ablate.cli import main; main({!r})"
HEAVY = ("torch", "ray", "mlflow", "pandas", "numpy", "scipy", "matplotlib", "pyarrow", "tokenizers")
ABLATE = ("ablate", "torch", "ray", "mlflow")

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ablate --help": (COMMAND.format(["--help"]), HEAVY),
    "ablate run --help": (COMMAND.format(["run", "--help"]), HEAVY),
    "ablate --version": (COMMAND.format(["--version"]), HEAVY),
    "ablate list": (COMMAND.format(["list"]), HEAVY),
    "ablate list --json": (COMMAND.format(["list", "--json"]), HEAVY),
    "ablate list mixer --plugin": (COMMAND.format(["list", "--plugin", "{example}"]), HEAVY),
    "ablate plan": (COMMAND.format(["plan", "grid.yaml"]), ("ray", "mlflow", "pandas", "matplotlib")),
    "import ablate": ("import ablate", HEAVY),
    "ablate.load": ("import ablate; ablate.load('grid.yaml')", tuple(each for each in HEAVY if each != "numpy")),
    "Ray's processes": ("import ablate.run.ray_driver, ablate.run.ray_home", ("torch", "mlflow", "scipy")),
    "import ablate.run.status": ("import ablate.run.status", HEAVY),
    "import ablate.spec": ("import ablate.spec, ablate.overlays", HEAVY),
    "import analysis": ("import analysis", ABLATE),
    "import analysis.table": ("import analysis.table", ABLATE),
    "import analysis.fit": ("import analysis.fit, analysis.laws, analysis.effects", ABLATE),
    "import analysis.report": ("import analysis.report, analysis.plots, analysis.tables", ABLATE),
}
REPORT = """
import atexit, sys
atexit.register(lambda: print("IMPORTED", *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr))
"""


@pytest.mark.parametrize("name", CASES)
def test_imports(tmp_path: Path, name: str) -> None:
    code, unwanted = CASES[name]
    (tmp_path / "grid.yaml").write_text(TINY)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            REPORT + code.replace("{example}", str(ROOT / "docs" / "examples" / "my_variants.py")),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported = done.stderr.split("IMPORTED ")[1].split()
    assert {"ablate", "analysis"} & set(imported)
    assert not set(unwanted) & set(imported)


def test_analysis_never_names_ablate() -> None:
    """Nor where it is imported late: by its source."""
    for file in (ROOT / "analysis").rglob("*.py"):
        for word in ABLATE:
            assert f"import {word}" not in file.read_text() and f"from {word}" not in file.read_text(), file

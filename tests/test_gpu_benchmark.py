"""The script that measures a GPU runs on a CPU as well, at sizes that mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu import PARTS, main


def test_its_tables_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["--cpu", "--out", str(tmp_path), "rates", "same", "cohorts"]) == 0
    torch.set_num_threads(threads)
    (file,) = tmp_path.glob("*.md")
    text = file.read_text()
    assert "## Rates of products" in text and "## Cohorts" in text and f"torch {torch.__version__}" in text
    differences = [float(line.split("|")[3]) for line in text.splitlines() if line.startswith("| together | alone")]
    assert len(differences) == 2 and max(differences) < 1e-5
    assert "written to" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path)]) == 2 and "no GPU here" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--cpu", "nothing"])
    said = capsys.readouterr().err
    assert all(part in said for part in PARTS)

"""What is typed: completion in a shell, beginnings of names, and what was meant by a wrong one."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from ablate.cli import main
from ablate.errors import UserError, unknown
from ablate.run.ledger import Ledger
from ablate.run.schema import prepare
from analysis.typed import did_you_mean

NEAR = [
    ("rnu", ["run", "plan", "ui"], "run"),
    ("RoPE", ["rope", "alibi"], "rope"),
    ("leave-one-out", ["leave_one_out", "both"], "leave_one_out"),
    ("pos", ["position", "norm"], "position"),
    ("ropee", ["alibi", "rope"], "rope"),
]


@pytest.mark.parametrize(("word", "names", "meant"), NEAR)
def test_what_was_meant(word: str, names: list[str], meant: str) -> None:
    assert did_you_mean(word, names) == f" did you mean {meant!r}?"


@pytest.mark.parametrize(("word", "names"), [("zzz", ["run"]), ("", ["run"]), ("r", ["run", "resume"]), ("x", [])])
def test_nothing_is_near(word: str, names: list[str]) -> None:
    assert did_you_mean(word, names) == ""


def test_of_names_that_are_unknown_all_are_told() -> None:
    assert unknown("slot", "nrom", ["norm", "head"]) == "unknown slot 'nrom'; did you mean 'norm'? known: head, norm"


TYPED = {
    "rnu grid.yaml": "did you mean 'run'?",
    "run g.yaml --worker-s 2": "did you mean '--workers'?",
    "plan g.yaml --prob": "g.yaml does not exist",  # the beginning of an option is the option
    "plan g.yaml --pr=5": "could match --probe, --price",
    "run g.yaml --executor rya": "did you mean 'ray'?",
    "completion fish": "choose from bash, zsh",
    "list positon": "did you mean 'position'?",
    "show lama2": "did you mean 'llama2'?",
    "check rop": "did you mean 'rope'?",
    "fit t.csv --boostrap 10": "did you mean '--bootstrap'?",
    "fit {table} --form chinchila": "did you mean 'chinchilla'?",
    "fit {table} --n parms": "did you mean 'params'?",
    "fit {table} --group varient": "did you mean 'variant'?",
    "plan quikstart.yaml": "did you mean 'quickstart.yaml'?",
    "status quikstart": "did you mean 'quickstart'?",
    "why quikstart": "did you mean 'quickstart'?",
    "why 0123456799": "did you mean '0123456789ab'?",
    "verify quikstart": "did you mean 'quickstart'?",
    "track quikstart": "did you mean 'quickstart'?",
    "export quikstart": "did you mean 'quickstart'?",
    "run quickstart.yaml --budget 4gpu-hs": "did you mean 'gpu-h'?",
    "plan quickstart.yaml --set trian.lr=1": "did you mean 'train'?",
    "plan quickstart.yaml --set hypothesis={variant:\\ ropee}": "did you mean 'rope'?",
    "plan quickstart.yaml --set published=narang_table": "did you mean 'narang_table",
}


@pytest.mark.parametrize("words", TYPED)
def test_what_was_meant_is_said(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(Path("results"))
    (tmp_path / "quickstart.yaml").write_text("variants: [baseline, rope]\n")
    (tmp_path / "t.csv").write_text("params,tokens,loss,variant\n1e6,1e8,3.0,a\n2e6,1e8,2.9,a\n")
    for name in ("studies/quickstart/study.json", "trials/0123456789ab/spec.json"):
        (tmp_path / "results" / name).parent.mkdir(parents=True)
        (tmp_path / "results" / name).write_text("{}")
    try:
        code = main(shlex.split(words.replace("{table}", "t.csv")))
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert TYPED[words] in capsys.readouterr().err


def test_the_beginning_of_a_trial_is_the_trial(tmp_path: Path) -> None:
    prepare(tmp_path)
    for name in ("0a3456789abc", "0b3456789abc", "1c3456789abc"):
        (tmp_path / "trials" / name).mkdir(parents=True)
    ledger = Ledger(tmp_path)
    assert ledger.find_trial("0b").id == ledger.find_trial("0B34").id == "0b3456789abc"
    with pytest.raises(UserError, match="begins the ids of 2 trials"):
        ledger.find_trial("0")


COMPLETED = {
    "ablate pla": {"plan"},
    "ablate plan gri": {"grid.yaml"},
    "ablate run --exec": {"--executor"},
    "ablate run --executor ": {"local", "ray"},
    "ablate status q": {"quickstart"},
    "ablate why 01": {"0123456789ab"},
    "ablate show llama": {"llama2"},
    "ablate check rop": {"rope"},
    "ablate list posi": {"position"},
    "ablate init --from quick": {"quickstart"},
    "ablate init --size 12": {"125M"},
    "ablate fit --boot": {"--bootstrap"},
    "ablate verify --results resu": {"results"},
}
ASKED = """\
source ./ablate.bash
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); COMPREPLY=()
_shtab_ablate
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a grid, results and the script of bash."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    place = tmp_path_factory.mktemp("shell")
    (place / "results" / "studies" / "quickstart").mkdir(parents=True)
    (place / "results" / "trials" / "0123456789ab").mkdir(parents=True)
    (place / "grid.yaml").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda text: printed.append(text))
        assert main(["completion", "bash"]) == 0
    (place / "ablate.bash").write_text(printed[0])
    return place


@pytest.mark.parametrize("typed", COMPLETED)
def test_bash_completes(typed: str, shell: Path) -> None:
    words = " ".join(shlex.quote(word) for word in typed.split(" "))
    command = ["bash", "--norc", "-c", ASKED.format(words=words)]
    done = subprocess.run(command, cwd=shell, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert COMPLETED[typed] == set(done.stdout.split())


def test_zsh_reads_its_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef ablate") and "_ablate_studies" in script
    if shutil.which("zsh") is None:
        pytest.skip("needs zsh")
    (tmp_path / "_ablate").write_text(script)
    assert subprocess.run(["zsh", "-n", str(tmp_path / "_ablate")], check=False).returncode == 0

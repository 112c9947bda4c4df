"""What goes from one results folder to another: by a merge, and as a file that may have been tampered with."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import new_results, run_here, spec, train
from test_keeping import content, killed_at

from ablate.run import schema
from ablate.run.archive import export, import_archive
from ablate.run.files import append_json, write_json
from ablate.run.ledger import Ledger
from ablate.run.merge import merge
from ablate.spec import TrialSpec, to_tree
from ablate.train.trial import plan_trial
from analysis.report import write_report

SPECS = [spec(seed=seed) for seed in range(3)]
IDS = [each.trial_id for each in SPECS]


def ended(ledger: Ledger, trial: TrialSpec, loss: float = 2.0, status: str = "finished", **facts: Any) -> None:
    """A trial's folder as training would leave it, with a loss of the test's choosing."""
    folder = plan_trial(ledger, trial)
    rows = [{"step": step, "tokens": step * 64, "split": "valid", "loss": loss + 1 - step / 12} for step in (0, 12)]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.note("end", status=status)
    folder.weights.write_bytes(f"weights {loss}".encode())
    metrics = {"loss": loss if status == "finished" else None}
    environment = {"host": str(ledger.root), "cpu": "a processor"}
    record = {"id": trial.trial_id, "status": status, "metrics": metrics, "environment": environment}
    record["wall_s"] = 1.0
    folder.commit(record | {"parent": trial.parent, "spec": to_tree(trial)} | facts)


def listed(ledger: Ledger, *trials: TrialSpec, name: str = "mine") -> None:
    """A study of these trials."""
    label = {"variant": "v", "size": "", "axes": "", "budget": "", "group_id": "g", "axis_values": {}}
    rows = [{"id": each.trial_id, "parent": each.parent, "seed": each.seed, **label} for each in trials]
    folder = ledger.study_folder(name)
    about = {"question": "", "baseline": "v", "match": "none", "tolerance": 0.01, "data": {}, "rows": []}
    write_json(folder / "study.json", {"study": name, **about, "trials": rows})
    append_json(folder / "log.jsonl", {"time": 1.0, "by": str(ledger.root), "trained": [], "reused": []})
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "behind.json").write_text("{}")
    (folder / "lock").touch()
    (folder / "published.json").write_text("{}")


@pytest.fixture
def here(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Ledger:
    """Three finished trials, of which a study has two."""
    ledger = Ledger(tmp_path / "there")
    for seed, trial in enumerate(SPECS):
        ended(ledger, trial, 2.0 + seed)
    listed(ledger, *SPECS[:2])
    return ledger


def results(folder: Path) -> dict[str, bytes]:
    """What a results folder holds, but for what is of its machine or of a moment."""
    mine = (schema.FILE, ".merge.lock", "studies/mine/published.json")
    files = content(folder)
    return {name: files[name] for name in files if name not in mine and not name.endswith(".part")}


def test_a_merge_is_the_union_and_is_idempotent(here: Ledger, there: Ledger) -> None:
    """Also of a trial under way, with its checkpoint; locks, leases and half-written files stay where they are."""
    begun = plan_trial(there, spec(seed=7))
    for name in ("checkpoint.pt", "lock", "lease.2.json", ".record.json.5.part"):
        (begun.folder / name).write_text("x")
    os.utime(begun.folder / "lease.2.json", (0, 0))  # whoever had it is long gone
    here.root.mkdir()
    code, said = run_here("merge", there.root, "--into", here.root, "--dry-run")
    assert code == 0 and "4 trials would be added" in said and content(here.root) == {}
    code, said = run_here("merge", there.root, "--into", here.root)
    assert code == 0 and "4 trials added" in said
    wanted = {name: each for name, each in results(there.root).items() if "lease" not in name}
    assert results(here.root) == wanted and f"trials/{begun.id}/checkpoint.pt" in wanted
    before = content(here.root)
    done = merge(there, here)
    assert (done.added, done.replaced, done.kept, done.conflicts) == ([], [], 4, [])
    assert content(here.root) == before


def test_a_record_that_cannot_be_read_is_not_merged(here: Ledger, there: Ledger) -> None:
    """It is named, and the others come."""
    here.root.mkdir()
    (there.trial(IDS[0]).folder / "record.json").write_text("torn")
    code, said = run_here("merge", there.root, "--into", here.root)
    assert code == 0 and "2 trials added" in said and here.trial_ids() == sorted(IDS[1:])
    assert f"trial {IDS[0]} left out: trials/{IDS[0]}/record.json is not whole there" in said


def test_a_result_beats_what_has_none(here: Ledger, there: Ledger) -> None:
    """Failed here and under way here: theirs, with our record among the attempts. Failed there: ours."""
    ended(here, SPECS[0], status="failed", error="it was cold")
    under_way = plan_trial(here, SPECS[1])
    under_way.checkpoint.write_bytes(b"state"), under_way.note("start", step=0)
    ended(here, SPECS[2], 9.0)
    ended(there, SPECS[2], status="failed")
    done = merge(there, here)
    assert sorted(done.replaced) == sorted(IDS[:2]) and done.kept == 1 and not done.conflicts
    for number in (0, 1):
        mine, theirs = here.trial(IDS[number]), there.trial(IDS[number])
        assert mine.record() == theirs.record() and mine.rows() == theirs.rows()
        assert mine.weights.read_bytes() == theirs.weights.read_bytes() and not mine.checkpoint.exists()
    (replaced,) = [each for each in here.trial(IDS[0]).history() if each["event"] == "replaced"]
    assert replaced["record"]["error"] == "it was cold"
    assert [each["event"] for each in here.trial(IDS[1]).history()] == ["end", "start"]
    assert (here.trial(IDS[2]).record() or {})["metrics"] == {"loss": 9.0}


def test_numbers_that_differ_are_a_conflict_and_ours_stay(here: Ledger, there: Ledger) -> None:
    ended(here, SPECS[0], 2.0000000000000004)
    ended(here, SPECS[1], status="diverged")
    before = {each: content(here.trial(each).folder) for each in IDS[:2]}
    code, said = run_here("merge", there.root, "--into", here.root)
    assert code == 1 and "loss: 2.0000000000000004 here, 2.0 there" in said and "status: diverged here" in said
    assert f"here: host {here.root}, cpu a processor; there: host {there.root}" in said
    assert {each: content(here.trial(each).folder) for each in IDS[:2]} == before
    assert IDS[2] in here.trial_ids()


def test_running_trials_are_left_out(here: Ledger, there: Ledger) -> None:
    plan_trial(here, SPECS[0]), plan_trial(there, spec(seed=7))
    with here.trial(IDS[0]).locked(), there.trial(spec(seed=7).trial_id).locked():
        done = merge(there, here)
    assert {each["why"] for each in done.skipped} == {"it is running here", "it is running there"}
    assert here.trial(IDS[0]).record() is None and spec(seed=7).trial_id not in here.trial_ids()
    assert merge(there, here).skipped == [] and here.trial(IDS[0]).record()


def test_studies_are_united(here: Ledger, there: Ledger) -> None:
    listed(here, *SPECS[1::-1])
    merge(there, here), merge(there, here)
    lines = (here.study_folder("mine") / "log.jsonl").read_text().splitlines()
    assert sorted(json.loads(each)["by"] for each in lines) == sorted([str(here.root), str(there.root)])


def test_another_study_of_that_name(here: Ledger, there: Ledger) -> None:
    listed(here, SPECS[2])
    ours = content(here.study_folder("mine"))
    code, said = run_here("merge", there.root, "--into", here.root)
    assert code == 1 and "study mine has 2 trials there, others than 1 here" in said
    assert content(here.study_folder("mine")) == ours and here.study_names() == ["mine"]
    for _ in range(2):
        assert merge(there, here, rename=True).conflicts == []
        (name,) = set(here.study_names()) - {"mine"}
        assert name.startswith("mine-") and here.study(name)["study"] == name
        assert [each["id"] for each in here.study(name)["trials"]] == IDS[:2]
    assert content(here.study_folder("mine")) == ours


def test_what_cannot_be_merged(here: Ledger, there: Ledger, tmp_path: Path) -> None:
    """Nothing is changed then."""
    here.root.mkdir()
    code, said = run_here("merge", there.root, "--into", there.root / "trials" / "..")
    assert code == 2 and "are the same folder" in said
    code, said = run_here("merge", here.root, "--into", there.root)
    assert code == 2 and "is no results folder" in said
    listed(here, *SPECS[:2])
    with here.study_lock("mine"):
        code, said = run_here("merge", there.root, "--into", here.root)
        assert code == 2 and "is at study 'mine'" in said and here.trial_ids() == []
    (there.root / "trials" / "some").mkdir()
    code, said = run_here("merge", there.root, "--into", here.root)
    assert code == 2 and "is no trial of that id" in said and here.trial_ids() == []
    write_json(there.root / schema.FILE, {"schema": 9})
    code, said = run_here("merge", there.root, "--into", here.root)
    assert code == 2 and "has schema 9" in said


KILL = """
import os, shutil, sys, time
sys.path.insert(0, {tests!r})
import os as system
from collections.abc import Callable
from pathlib import Path
from ablate.run import files, merge
left = [{after}]
def slow(whole):
    def wrapped(*rest, **more):
        left[0] -= 1
        if left[0] == 0:
            print("half", flush=True)
            time.sleep(600)
        return whole(*rest, **more)
    return wrapped
shutil.copyfile, os.replace, Path.rename = slow(shutil.copyfile), slow(os.replace), slow(Path.rename)
from ablate.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4, 9, 11, 13, 15, 17, 19, 21, 22])
def test_a_merge_that_was_killed_is_done_again(here: Ledger, there: Ledger, after: int) -> None:
    """Killed before one of its copies or renames. In between no trial has the record of one and the curve of the
    other."""
    ended(here, SPECS[0], 5.0, status="failed")
    command = ("merge", there.root, "--into", here.root)
    killed_at("half", KILL.format(tests=str(ROOT / "tests"), after=after), *command)
    for each in here.trial_ids():
        record = here.trial(each).record()
        if record and record["status"] == "finished":
            assert here.trial(each).rows() == there.trial(each).rows() and here.trial(each).weights.exists()
        elif record is not None:
            assert here.trial(each).rows()[-1]["loss"] == 5.0
        else:
            assert not here.trial(each).checkpoint.exists()
    assert run_here(*command)[0] == 0
    kept = here.trial(IDS[0]).history()
    assert sum(each["event"] == "replaced" for each in kept) == 1
    wanted = results(there.root)
    attempts = f"trials/{IDS[0]}/attempts.jsonl"
    assert {**results(here.root), attempts: b""} == {**wanted, attempts: b""}


def test_a_round_trip(here: Ledger, there: Ledger, tmp_path: Path) -> None:
    """Without weights, and then with them; without the trial of no study."""
    first, again = tmp_path / "a.tar.gz", tmp_path / "b.tar.gz"
    assert run_here("export", "mine", "--results", there.root, "--out", first)[0] == 0
    export(there, "mine", again)
    assert first.read_bytes() == again.read_bytes() and first.read_bytes()[4:8] == b"\0" * 4  # no time of its own
    code, said = run_here("import", first, "--results", here.root)
    assert code == 0 and "2 trials added" in said
    wanted = {name: each for name, each in results(there.root).items() if IDS[2] not in name}
    assert results(here.root) == {name: each for name, each in wanted.items() if "weights" not in name}
    export(there, "mine", again, weights=True, force=True)
    code, said = run_here("import", again, "--results", here.root, "--json")
    assert code == 0 and json.loads(said)["weights"] == sorted(IDS[:2]) and results(here.root) == wanted
    assert not list(here.root.glob(".import-*"))


def test_a_report_is_the_same_after_a_round_trip(ledger: Ledger, here: Ledger, tmp_path: Path) -> None:
    """`ablate verify` computes it anew from what was imported. The trials are fabricated, but for their ids."""
    import fabricate

    labels = fabricate.study(tmp_path / "made", lambda label: 2.0 + label["seed"] / 100)
    text = (tmp_path / "made" / "studies" / "made" / "study.json").read_text()
    for number, label in enumerate(labels):
        trial = spec(seed=number)
        text = text.replace(label["id"], trial.trial_id)
        source, target = tmp_path / "made" / "trials" / label["id"], plan_trial(ledger, trial).folder
        shutil.copy(source / "metrics.jsonl", target)
        (target / "record.json").write_text((source / "record.json").read_text().replace(label["id"], trial.trial_id))
    write_json(ledger.study_folder("made") / "study.json", json.loads(text))
    write_report(ledger.root, "made")
    import_archive(export(ledger, "made", tmp_path / "a.tar.gz").file, here.root)
    code, said = run_here("verify", "made", "--results", here.root)
    assert code == 0 and "every number is what the ledger says" in said
    report = here.study_folder("made") / "report"
    before = content(report)
    write_report(here.root, "made")
    assert content(report) == before and len(before) > 10


def test_parents_go_along_and_what_has_not_ended_stays(there: Ledger, tmp_path: Path) -> None:
    stage = spec({"train.tokens": 640}, seed=4)
    stage = replace(stage, parent=IDS[2])
    ended(there, stage)
    listed(there, stage, spec(seed=5), name="staged")
    code, said = run_here("export", "staged", "--results", there.root, "--out", tmp_path / "s.tar.gz")
    assert code == 0 and "with 2 trials" in said and "1 trial left out" in said
    done = import_archive(tmp_path / "s.tar.gz", tmp_path / "fresh")
    assert sorted(done.merged.added) == sorted([stage.trial_id, IDS[2]]) and done.unchecked == {}


def test_an_archive_is_not_overwritten_by_another(there: Ledger, tmp_path: Path) -> None:
    out = tmp_path / "mine.tar.gz"
    export(there, "mine", out), export(there, "mine", out)
    command = ("export", "mine", "--results", there.root, "--out", out)
    was = out.read_bytes()
    ended(there, SPECS[0], 2.5)
    code, said = run_here(*command)
    assert code == 2 and "holds something else: --force" in said and out.read_bytes() == was
    assert run_here(*command, "--force")[0] == 0 and out.read_bytes() != was
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine.tar.gz", "there"]


@pytest.mark.slow
def test_a_real_trial_is_reused_after_an_import(ledger: Ledger, token_cache: Path, tmp_path: Path) -> None:
    folder = train(ledger, SPECS[0])
    listed(ledger, SPECS[0])
    other = new_results(tmp_path / "other", token_cache)
    done = import_archive(export(ledger, "mine", tmp_path / "a.tar.gz", weights=True).file, other.root)
    assert done.unchecked == {} and train(other, SPECS[0]).record() == folder.record()
    assert other.trial(IDS[0]).weights.read_bytes() == folder.weights.read_bytes()


Members = list[tuple[tarfile.TarInfo, bytes]]


def packed(members: Members, end: bytes = b"\0" * 1024) -> bytes:
    """A tar.gz of these members, whatever they are."""
    blocks = [each.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % 512) for each, data in members]
    return gzip.compress(b"".join(blocks) + end, mtime=0)


def member(name: str, data: bytes, **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data


@pytest.fixture
def archive(there: Ledger, tmp_path: Path) -> Path:
    listed(there, SPECS[0])
    return export(there, "mine", tmp_path / "mine.tar.gz").file


def members_of(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]


def rewritten(archive: Path, change: Callable[[dict[str, bytes]], None], **facts: Any) -> Path:
    """The archive with other files, and a manifest that fits them."""
    files = members_of(archive)
    manifest = json.loads(files.pop("MANIFEST.json")) | facts
    change(files)
    sums = {name: {"bytes": len(each), "sha256": hashlib.sha256(each).hexdigest()} for name, each in files.items()}
    first = member("MANIFEST.json", json.dumps(manifest | {"files": sums}).encode())
    archive.write_bytes(packed([first, *(member(name, files[name]) for name in sorted(files))]))
    return archive


def refused(archive: Path, folder: Path) -> str:
    """What `ablate import` says, which must change nothing: not in the results, not beside them."""
    outside = content(folder.parent)
    code, said = run_here("import", archive, "--results", folder)
    assert code == 2 and said.startswith("ablate: ") and "Traceback" not in said, said
    assert content(folder.parent) == outside and not list(folder.glob(".import-*"))
    return said


SPEC, RECORD, STUDY = f"trials/{IDS[0]}/spec.json", f"trials/{IDS[0]}/record.json", "studies/mine/study.json"


def with_record(**facts: Any) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({RECORD: json.dumps(json.loads(files[RECORD]) | facts).encode()})


CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "above": (lambda files: files.update({"../evil": b"x"}), "member '../evil': it would lie outside"),
    "within": (lambda files: files.update({"trials/../../evil": b"x"}), "it would lie outside"),
    "absolute": (lambda files: files.update({"/tmp/evil": b"x"}), "it would lie outside"),
    "elsewhere": (lambda files: files.update({"cache/evil": b"x"}), "only files of study 'mine' and of trials"),
    "other study": (lambda files: files.update({"studies/x/log.jsonl": b"x"}), "only files of study 'mine'"),
    "other file": (lambda files: files.update({f"trials/{IDS[0]}/lock": b"x"}), "only files of study 'mine'"),
    "no id": (lambda files: files.update({"trials/some/spec.json": b"x"}), "only files of study 'mine'"),
    "hidden": (lambda files: files.update({"studies/mine/.x": b"x"}), "no name that `ablate export` writes"),
    "control": (lambda files: files.update({"studies/mine/a\nb": b"x"}), "no name that `ablate export` writes"),
    "file and folder": (lambda files: files.update({f"{STUDY}/x": b"x"}), "another member is the folder"),
    "no study": (lambda files: files.pop(STUDY) and None, f"there is no member '{STUDY}'"),
    "no record": (lambda files: files.pop(RECORD) and None, f"there is no member '{RECORD}'"),
    "deep": (lambda files: files.update({STUDY: b"[" * 100_000}), f"member '{STUDY}' is not JSON"),
    "digits": (lambda files: files.update({RECORD: b"9" * 10_000}), f"member '{RECORD}' is not the record"),
    "wrong study": (lambda files: files.update({STUDY: b'{"study": "x", "trials": []}'}), "is not the study 'mine'"),
    "wrong trials": (lambda files: files.update({STUDY: b'{"study": "mine", "trials": [1]}'}), "is not the study"),
    "unended": (with_record(status="running"), "is not the record of that trial"),
    "wrong id": (with_record(id=IDS[1]), "is not the record of that trial"),
    "no metrics": (with_record(metrics=[1]), "is not the record of that trial"),
    "other spec": (
        lambda files: files.update({SPEC: json.dumps(to_tree(SPECS[1])).encode()}),
        f"member '{SPEC}': it is the specification of trial {IDS[1]}",
    ),
    "no spec": (lambda files: files.update({SPEC: b"[]"}), f"member '{SPEC}': it is no specification"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_belong_into_an_archive(archive: Path, here: Ledger, name: str) -> None:
    change, said = CHANGES[name]
    assert said in refused(rewritten(archive, change), here.root)
    assert not here.root.exists()


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"schema": 2, "ablate": "9.9"},
            "schema 2, this version of ablate knows 1: it was written by ablate 9.9",
        ),
        ({"schema": None}, "does not say its schema"),
        ({"study": [1]}, "does not say its schema, study"),
        ({"study": ".."}, "only files of study '..'"),
    ],
)
def test_manifests_that_are_refused(archive: Path, here: Ledger, facts: dict[str, Any], said: str) -> None:
    assert said in refused(rewritten(archive, lambda files: None, **facts), here.root)


def test_members_that_are_no_plain_files(archive: Path, here: Ledger) -> None:
    """Links, devices, folders; others than the manifest names, in another order, twice, longer, or behind its end."""
    files = members_of(archive)
    rest = [member(name, files[name]) for name in sorted(files) if name != "MANIFEST.json"]
    first = member("MANIFEST.json", files["MANIFEST.json"])
    name = rest[0][0].name

    def said(*members: tuple[tarfile.TarInfo, bytes], end: bytes = b"\0" * 1024) -> str:
        archive.write_bytes(packed(list(members), end))
        return refused(archive, here.root)

    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        evil = member(name, b"", type=kind, linkname="/etc/passwd")
        assert f"member {name!r} is not a regular file" in said(first, evil, *rest[1:])
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        assert "stands where MANIFEST.json has" in said(first, member("long", b"x" * 600, type=kind), *rest)
    assert "stands where" in said(first, member("../evil", b"x"), *rest)
    assert "stands where" in said(first, *rest[::-1])
    assert "stands where" in said(*rest, first)
    assert "more in it than MANIFEST.json names" in said(first, *rest, rest[0])
    assert "more in it than MANIFEST.json names" in said(first, *rest, end=b"\0" * (1 << 24))
    assert "MANIFEST.json says" in said(first, member(name, files[name] + b"x"), *rest[1:])
    assert "its SHA-256 differs" in said(first, member(name, files[name][:-1] + b"x"), *rest[1:])
    assert "no member where" in said(first, *rest[:-1])
    assert "no member where 'MANIFEST.json' should be" in said()
    for text in (
        b"{",
        b"[1]",
        b'{"files": {"a": 1}}',
        b'{"files": {"a": {"bytes": -1, "sha256": ""}}}',
        b"[" * 99999,
    ):
        assert "does not say the size and the SHA-256" in said(member("MANIFEST.json", text), *rest)


def test_an_archive_that_says_it_is_too_large(archive: Path, here: Ledger) -> None:
    """A manifest that declares more than the disk has is refused before anything is unpacked."""
    files = members_of(archive)
    manifest = json.loads(files["MANIFEST.json"])
    for number in range(2_000):
        manifest["files"][f"studies/mine/z{number}"] = {"bytes": (8 << 30) - 1, "sha256": ""}
    archive.write_bytes(packed([member("MANIFEST.json", json.dumps(manifest).encode())]))
    code, said = run_here("import", archive, "--results", here.root)
    assert code == 75 and "are free" in said and not here.root.exists()


def test_what_is_no_archive(here: Ledger, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no archive")
    assert "no archive of `ablate export`" in refused(tmp_path / "a", here.root)
    assert "no such file" in refused(tmp_path / "b", here.root)


def test_trials_whose_ids_cannot_be_computed_here_are_taken_by_their_record(archive: Path, here: Ledger) -> None:
    """Those with a component that is not known, and those of another version of ablate."""

    def unknown(files: dict[str, bytes]) -> None:
        files[SPEC] = files[SPEC].replace(b'"layernorm"', b'"mynorm"').replace(b'"rmsnorm"', b'"mynorm"')

    done = import_archive(rewritten(archive, unknown), here.root)
    assert list(done.unchecked) == [IDS[0]] and "unknown norm 'mynorm'" in done.unchecked[IDS[0]]
    other = rewritten(archive, lambda files: files.update({SPEC: json.dumps(to_tree(SPECS[1])).encode()}), ablate="9")
    assert import_archive(other, here.root.with_name("x")).unchecked == {IDS[0]: "written by ablate 9"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """A good archive, and a folder for what it is made into."""
    folder = tmp_path_factory.mktemp("fuzz")
    ledger = Ledger(folder / "there")
    ended(ledger, SPECS[0])
    listed(ledger, SPECS[0])
    good = export(ledger, "mine", folder / "a.tar.gz").file.read_bytes()
    shutil.rmtree(ledger.root)
    return good, folder


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_changes_nothing(whole: tuple[bytes, Path], data: st.DataObject) -> None:
    """Bits flipped in the file or in the tar within it, and files cut short: refused, or the same results."""
    good, folder = whole
    inside = data.draw(st.booleans(), "inside")
    raw = bytearray(gzip.decompress(good) if inside else good)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(raw) - 1), max_size=4), "bits"):
        raw[bit // 8] ^= 1 << bit % 8
    cut = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw) - 1)), "length")
    archive, here = folder / "a.tar.gz", folder / "here"
    archive.write_bytes(gzip.compress(bytes(raw[:cut]), mtime=0) if inside else bytes(raw[:cut]))
    code, said = run_here("import", archive, "--results", here)
    try:
        assert sorted(each.name for each in folder.iterdir()) == ["a.tar.gz", *(["here"] if code == 0 else [])]
        assert code in (0, 2) and (code == 0 or said.startswith("ablate: ")), said
        if code == 0:  # what was flipped says nothing, as a time in a header
            assert (Ledger(here).trial(IDS[0]).record() or {})["metrics"] == {"loss": 2.0}
    finally:
        shutil.rmtree(here, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 3, 5])
def test_an_import_that_was_killed_is_done_again(here: Ledger, there: Ledger, tmp_path: Path, after: int) -> None:
    """Killed between its renames: of a trial, of the other, of the study's files."""
    command = ("import", export(there, "mine", tmp_path / "a.tar.gz").file, "--results", here.root)
    killed_at("half", KILL.format(tests=str(ROOT / "tests"), after=after), *command)
    assert all(here.trial(each).record() and here.trial(each).rows() for each in here.trial_ids())
    assert run_here(*command)[0] == 0
    left = {name: each for name, each in results(here.root).items() if not name.startswith(".import-")}
    wanted = {name: each for name, each in results(there.root).items() if IDS[2] not in name}
    assert left == {name: each for name, each in wanted.items() if "weights" not in name}

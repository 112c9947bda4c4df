"""A study as one file: its folder, its trials that have ended with all that they begin from, and a manifest.

An archive is looked through to its end before anything of it appears among the results.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate import __version__
from ablate.errors import SpecError, UserError
from ablate.run import schema
from ablate.run.files import write_whole
from ablate.run.kept import IMPORT, RESULT_FILES, is_id, is_study, parent_of, study_files, with_parents
from ablate.run.ledger import Ledger
from ablate.run.merge import Merge, merge
from ablate.run.tarball import MANIFEST, Manifest, checksum, pack, unpack
from ablate.spec import TrialSpec, canonical, digest, parse
from analysis.records import BadRecord, read_record


@dataclass(frozen=True)
class Exported:
    """An archive, its trials, and those of the study that have not ended and are not in it."""

    file: Path
    trials: list[str]
    left_out: list[str]
    bytes: int


def export(ledger: Ledger, study: str, out: Path, weights: bool = False, force: bool = False) -> Exported:
    """Write a study's archive. Raises `UserError` for an unknown study, or an `out` that holds something else."""
    listed = [each["id"] for each in ledger.study(study)["trials"]]
    wanted = with_parents(listed, lambda each: parent_of(ledger.trial(each)))
    ended = sorted(each for each in wanted if ledger.trial(each).record() is not None)
    names = [f"studies/{study}/{path.as_posix()}" for path in study_files(ledger.study_folder(study))]
    for trial_id in ended:
        folder = ledger.trial(trial_id).folder
        files = (name for name in RESULT_FILES if (weights or name != "weights.pt") and (folder / name).is_file())
        names += [f"trials/{trial_id}/{name}" for name in files]
    try:
        files_of = {name: checksum(ledger.root / name) for name in names}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} changed while it was packed: run the command again") from None
    manifest = {"schema": schema.known(), "ablate": __version__, "study": study, "files": files_of}
    write_whole(out, lambda part: _pack_once(part, ledger.root, manifest, None if force else out))
    return Exported(out, ended, sorted(wanted - set(ended)), out.stat().st_size)


def _pack_once(part: Path, root: Path, manifest: Manifest, standing: Path | None) -> None:
    """Write the archive, which may take the place of the same one only."""
    pack(part, root, manifest)
    if standing is not None and standing.exists() and checksum(standing) != checksum(part):
        raise UserError(f"{standing} exists and holds something else: --force overwrites it, --out names another")


@dataclass(frozen=True)
class Imported:
    """What an import did, and the trials whose ids could not be computed anew here, with the reason."""

    study: str
    merged: Merge
    unchecked: dict[str, str]


def import_archive(archive: Path, results: Path, rename: bool = False) -> Imported:
    """Add an archive's study and trials to a results folder. Raises `UserError`, with nothing changed, for one that
    is not whole or not what it says."""
    if not archive.is_file():
        raise UserError(f"{archive}: no such file")
    fresh = not results.exists()
    schema.schema_of(results)
    results.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=IMPORT, dir=results))
    try:
        manifest = unpack(archive, folder, lambda found: _check_manifest(archive, found))
        unchecked = _check_results(archive, folder, manifest)
        if manifest["schema"] < schema.known():
            (folder / schema.FILE).write_text(json.dumps({"schema": manifest["schema"]}))
        schema.prepare(folder)
        fresh = False
        return Imported(
            manifest["study"], merge(Ledger(folder), Ledger(results), rename=rename, move=True), unchecked
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if fresh:
            results.rmdir()


def _check_manifest(archive: Path, manifest: Manifest) -> None:
    """Raise `UserError` for a manifest that this version cannot read, or that names files where none belong."""
    at, study = manifest.get("schema"), manifest.get("study")
    if type(at) is not int or at < 1 or not isinstance(study, str) or not isinstance(manifest.get("ablate"), str):
        raise UserError(f"{archive}: {MANIFEST} does not say its schema, study and version of ablate")
    if at > schema.known():
        raise UserError(
            f"{archive} has schema {at}, this version of ablate knows {schema.known()}: it was written by ablate "
            f"{manifest['ablate']}, use that one or a newer one"
        )
    for name in manifest["files"]:
        parts = name.split("/")
        of_study = parts[:2] == ["studies", study] and len(parts) > 2
        of_trial = parts[0] == "trials" and len(parts) == 3 and is_id(parts[1]) and parts[2] in RESULT_FILES
        if not of_study and not of_trial:
            raise UserError(f"{archive}: member {name!r}: only files of study {study!r} and of trials belong here")


def _check_results(archive: Path, folder: Path, manifest: Manifest) -> dict[str, str]:
    """Raise `UserError` for a study or a trial that is none; returns the ids that could not be computed anew."""
    name = f"studies/{manifest['study']}/study.json"
    study = _json(archive, folder, name)
    if not is_study(study) or study.get("study") != manifest["study"]:
        raise UserError(f"{archive}: member {name!r} is not the study {manifest['study']!r} with its trials")
    unchecked = {}
    for trial_id in Ledger(folder).trial_ids():
        name = f"trials/{trial_id}/record.json"
        try:
            if read_record(folder / "trials" / trial_id) is None:
                raise UserError(f"{archive}: there is no member {name!r}")
        except BadRecord as error:
            raise UserError(f"{archive}: member {name!r} is not the record of that trial: {error}") from None
        spec = _json(archive, folder, name := f"trials/{trial_id}/spec.json")
        try:
            if why := _why_not_checked(spec, trial_id, manifest):
                unchecked[trial_id] = why
        except UserError as error:
            raise UserError(f"{archive}: member {name!r}: {error}") from None
    return unchecked


def _why_not_checked(tree: Any, trial_id: str, manifest: Manifest) -> str:
    """Empty when the specification is that trial's, else why an id says nothing here. Raises `UserError`."""
    if not isinstance(tree, dict):
        raise UserError("it is no specification")
    try:
        spec = parse(TrialSpec, tree)
        found = canonical(spec)
    except SpecError as error:  # a component of a plugin, or of another version
        return str(error)
    except (UserError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"it is no specification: {error}") from None
    if digest(found) == trial_id:
        return ""
    if manifest["ablate"] != __version__:
        return f"written by ablate {manifest['ablate']}"
    if _may_have_changed(found):
        return "one of its components has another version or code here"
    raise UserError(f"it is the specification of trial {digest(found)}")


def _may_have_changed(tree: Any) -> bool:
    """Whether an identity holds a component that is a plugin's, or that has had an earlier version."""
    if not isinstance(tree, dict):
        return False
    return "code" in tree or tree.get("version", 1) != 1 or any(_may_have_changed(each) for each in tree.values())


def _json(archive: Path, folder: Path, name: str) -> Any:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{archive}: there is no member {name!r}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{archive}: member {name!r} is not JSON") from None

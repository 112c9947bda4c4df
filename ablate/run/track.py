"""`ablate track`: a study's runs in MLflow, completed or made anew from the ledger."""

from __future__ import annotations

from ablate.run.background import BackgroundMirror
from ablate.run.ledger import Ledger
from ablate.run.tracking import REPORT, Mirror


def track_study(ledger: Ledger, name: str, uri: str, log_models: bool) -> tuple[int, str | None]:
    """Publish every trial of a study that has ended, and its report if it has one; what is there already is only
    looked for. Returns the number of those trials, and what went wrong. Raises `UserError` for an unknown study, and
    while a driver is at it.
    """
    study = ledger.study(name)
    with ledger.study_lock(name):
        mirror = Mirror(ledger, study, uri, log_models)
        background = BackgroundMirror(mirror)
        over = mirror.behind(ask=True)
        for trial_id in over:
            background.add(trial_id)
        trouble = background.close()
        report = ledger.study_folder(name) / REPORT
        if trouble is None and (report / "report.html").is_file():
            mirror.attach(report)
    return len(over), mirror.trouble

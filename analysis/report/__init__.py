"""Reports: one self-contained HTML file, the same as Markdown, and every table as CSV."""

from analysis.compared import NothingToReport
from analysis.report.build import Report, study_layouts, write_report

__all__ = ["NothingToReport", "Report", "study_layouts", "write_report"]

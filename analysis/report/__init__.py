"""Reports: one self-contained HTML file, the same as Markdown, and every table as CSV."""

from analysis.report.build import NothingToReport, Report, write_report

__all__ = ["NothingToReport", "Report", "write_report"]

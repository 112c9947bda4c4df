"""Reports: one self-contained HTML file, the same as Markdown, and every table as CSV."""

from analysis.report.build import Report, write_report

__all__ = ["Report", "write_report"]

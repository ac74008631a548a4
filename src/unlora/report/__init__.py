"""Pages for people: what a run achieved and what it cost, and several runs side by side. Loads no torch."""

from unlora.report.compare import Group, Section, write_comparison
from unlora.report.page import REPORT, write_report
from unlora.report.read import Run, read_run

__all__ = ["REPORT", "Group", "Run", "Section", "read_run", "write_comparison", "write_report"]

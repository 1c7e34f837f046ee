"""Reports of runs: one HTML file that opens without a network and without dgsgpt."""

from dgsgpt.report.page import build_report as build_report

__all__ = ["build_report"]

"""What was found out, for people: results on disk, the table, figures and a page in one file. Loads no torch."""

from foveate.report.html import render, render_run, write_report
from foveate.report.results import Bar, Bars, Chart, Curve, HeadMaps, Line, Made, Matrix, Results, Row, Table, TokenCounts, TokenGrid
from foveate.report.store import from_dict, load_results, save_results, to_dict
from foveate.report.table import html_table, terminal_table

__all__ = [
    "Bar", "Bars", "Chart", "Curve", "HeadMaps", "Line", "Made", "Matrix", "Results", "Row", "Table", "TokenCounts", "TokenGrid",
    "from_dict", "html_table", "load_results", "render", "render_run", "save_results", "terminal_table", "to_dict", "write_report",
]  # fmt: skip

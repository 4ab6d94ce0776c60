"""report.html, figures and tables from the saved results of a run. Nothing is computed here that needs a model.

`FIGURES` and `TABLES` list what there is; a new figure is one function and one entry there.
"""

from hepx.report.comparison import make_comparison
from hepx.report.explained import draw
from hepx.report.figures import FIGURES, TABLES, Figure, Numbers
from hepx.report.page import make_report, summary_lines

__all__ = ["FIGURES", "TABLES", "Figure", "Numbers", "draw", "make_comparison", "make_report", "summary_lines"]

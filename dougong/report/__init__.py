"""Reports: plain data rendered as one HTML file that needs nothing else, and as lines for the terminal.

Everything here is a pure function from data to text. A label is a string, or a pair (English, Chinese) of which the
page shows the one its reader chose.
"""

from dougong.report.bar import Group, Interval, bar_chart
from dougong.report.heat import heat_map
from dougong.report.html import Sample, code, paragraph, samples, table, tiles
from dougong.report.line import Series, line_chart
from dougong.report.page import Section, page
from dougong.report.terminal import bar, sparkline
from dougong.report.text import Label

__all__ = [
    "Group",
    "Interval",
    "Label",
    "Sample",
    "Section",
    "Series",
    "bar",
    "bar_chart",
    "code",
    "heat_map",
    "line_chart",
    "page",
    "paragraph",
    "samples",
    "sparkline",
    "table",
    "tiles",
]

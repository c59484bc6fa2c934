"""One HTML file that shows what trained networks learned: curves, errors, kernels, and the images behind the numbers.

The numbers come from the runs' files and from :mod:`fastalex.evaluation`. The page needs no network and no other file.
"""

from fastalex.reports.page import Report, render
from fastalex.reports.results import Results, collect

__all__ = ["Report", "Results", "collect", "render"]

"""The paper's tables, figures and claims: from data sets to one page, whatever is still missing in between.

The work is a list of steps. A step is a command of this project and the file or folder that it makes; a step whose
result is there is not repeated, so a reproduction that was killed goes on where it was. Tables and figures are then
read from what the steps have written, beside the published figures of :mod:`fastalex.studies.claims`.
"""

from fastalex.reproduction.job import Job
from fastalex.reproduction.session import reproduce

__all__ = ["Job", "reproduce"]

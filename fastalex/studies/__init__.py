"""The paper's claims as experiments: train networks that differ in one thing, with several seeds, and compare errors.

``claims.toml`` holds the claims and all published figures, :mod:`~fastalex.studies.claims` reads it,
:mod:`~fastalex.studies.runs` trains the variants of a study, :mod:`~fastalex.studies.comparison` compares their errors
with each other, with the published ones and with guessing, and :mod:`~fastalex.studies.picture` draws them.
"""

from fastalex.studies.claims import PUBLISHED_ERRORS, STUDIES, Study, Variant, find_study
from fastalex.studies.session import run_study

__all__ = ["PUBLISHED_ERRORS", "STUDIES", "Study", "Variant", "find_study", "run_study"]

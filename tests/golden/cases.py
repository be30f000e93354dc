"""The cases, lane by lane; a lane runs in one process, the heaviest lanes first."""

import cases_drawing
import cases_encoders
import cases_faults
import cases_pairs
import cases_text
import cases_told
from kit import CASES

for _lane in (cases_drawing, cases_told, cases_pairs, cases_encoders, cases_text, cases_faults):
    _lane.add_cases()

LANES = ["scenes", "drawing", "told", "pairs", "encoders", "text", "faults"]
assert {case.lane for case in CASES.values()} == set(LANES)

__all__ = ["CASES", "LANES"]

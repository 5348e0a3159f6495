"""Confirmation: candidates and their controls are trained again over other seeds, and judged on rows unseen so far.

- `settings`  how many of whom
- `runs`      what is trained again, on the slots
- `verdict`   what their answers on the test rows come to, with intervals
"""

from kdray.confirmation.runs import Rerun, Retrained, answers_of, rerun_all, reruns
from kdray.confirmation.settings import Confirm
from kdray.confirmation.verdict import Confirmed, Verdict, judged

__all__ = ["Confirm", "Confirmed", "Rerun", "Retrained", "Verdict", "answers_of", "judged", "rerun_all", "reruns"]

"""Confirmation: candidates and their controls are trained again over other seeds, and judged on rows unseen so far.

- `settings`  how many of whom
- `runs`      what is trained outside the search, on the slots
- `controls`  the front's architectures without distillation, and with it as it comes, beside the trials
- `verdict`   what the answers on the test rows come to, with intervals
"""

from kdray.confirmation.controls import Control, front_controls
from kdray.confirmation.runs import Rerun, Retrained, Role, answers_of, rerun_all, reruns
from kdray.confirmation.settings import Confirm
from kdray.confirmation.verdict import Confirmed, Verdict, judged

__all__ = [
    "Confirm",
    "Confirmed",
    "Control",
    "Rerun",
    "Retrained",
    "Role",
    "Verdict",
    "answers_of",
    "front_controls",
    "judged",
    "rerun_all",
    "reruns",
]

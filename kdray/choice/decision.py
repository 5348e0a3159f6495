"""Decision: the result of a sweep and the rule that led to it; the record choice.json."""

from pydantic import BaseModel, ConfigDict, Field

from kdray.choice.controls import Control
from kdray.choice.reruns import Confirm
from kdray.choice.rule import Choose
from kdray.choice.verdict import Verdict
from kdray.settings import Settings
from kdray.tasks.label_figures import LabelFigures


class DecisionSettings(Settings):
    """The settings of a decision: the rule, and the amount of confirmation."""

    choose: Choose = Choose()
    confirm: Confirm = Confirm()


class Decision(BaseModel):
    """The result of a sweep."""

    model_config = ConfigDict(frozen=True)

    chosen: int | None = None
    """The number of the chosen trial; None where no student satisfies the rule."""
    sentences: tuple[str, ...] = ()
    """The choice in words."""
    asked: DecisionSettings = DecisionSettings()
    """The rule and the confirmation that were requested."""
    front: tuple[int, ...] = ()
    """The numbers of the trials on the front of the objectives."""
    importances: dict[str, float] = Field(default_factory=dict)
    """Dotted name of a searched setting -> the share of the differences in quality that it explains."""
    controls: tuple[Control, ...] = ()
    """The controls of the front, on the validation rows."""
    confirmation: Verdict | None = None
    """The confirmed figures; None where the sweep has no confirmation."""
    measured: dict[str, dict[str, float]] | None = None
    """Split -> the metrics of the shipped student. None until the student is in `chosen/`."""
    by_label: dict[str, LabelFigures] | None = None
    """Label, or type of spans -> the figures of the shipped student on the test rows. None for a task without labels,
    and in a record of an earlier version of kdray."""

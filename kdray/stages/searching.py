"""The stages of the search: the costs of every architecture, then the trials."""

from collections.abc import Mapping
from typing import Any

from kdray.evaluation.costs import CostConditions, CostMeasuring, Costs
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.planner import Planner
from kdray.search.run_search import run_search
from kdray.stages.bookkeeping import Bookkeeper
from kdray.stages.preparing import Material
from kdray.stages.session import Session
from kdray.stages.teaching import Lessons
from kdray.storage.files import write_json
from kdray.storage.records import read_record, write_record
from kdray.training.trial import Trial


def measure_costs(session: Session, material: Material, lessons: Lessons) -> Costs:
    """Measure every architecture, and write down what teacher and architectures cost."""
    sweep, paths, slots, screen = session.sweep, session.paths, session.slots, session.screen
    screen.stage("Costs of each architecture")
    slots.wait()  # a slot that is still starting would disturb the clock
    begun = read_record(CostConditions, paths.conditions) if len(session.ledger) else None
    measuring = CostMeasuring(sweep.latency, paths, slots, measured_on=begun.machine if begun else None)
    costs = measuring.measure(
        sweep.students, material.sources, lambda done, count: screen.progress("architectures", done, count)
    )
    write_record(paths.conditions, CostConditions(costs=costs.conditions, machine=costs.machine))
    teacher = lessons.metrics | costs.teacher
    write_json(paths.teacher_figures, teacher)
    session.tracker.sweep(
        metrics={f"teacher.{name}": value for name, value in teacher.items()},
        tags={"kdray.measured": costs.conditions},
    )
    return costs


def search(session: Session, material: Material, lessons: Lessons, costs: Costs) -> list[TrialRecord]:
    """Run trials until the budget of the search is spent; all of them, those of earlier sessions too."""
    sweep, paths = session.sweep, session.paths
    session.screen.stage("Search")
    planner = Planner(
        sweep.search,
        sweep.space,
        session.ledger,
        costs=lambda params: costs.of(sweep.recipe_of(params).student),
        evaluations=lambda params: sweep.recipe_of(params).training.evaluations(len(material.splits.train)),
    )
    if planner.ignored_trials:
        session.screen.note(
            f"{planner.ignored_trials} of those trials break a constraint here: the sampler leaves them out."
        )

    def make_trial(number: int, params: Mapping[str, Any]) -> Trial:
        # All trials of a sweep have its seed, so that they see the same batches.
        recipe = sweep.recipe_of(params)
        return Trial(recipe, lessons.inputs.of(recipe.student), sweep.seed, paths.student(number))

    bookkeeper = Bookkeeper(session)
    run_search(session.slots, planner, make_trial, bookkeeper.update)
    bookkeeper.remove_leftovers()
    return session.ledger.records()

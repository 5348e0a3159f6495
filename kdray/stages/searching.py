"""The stages of the search: the costs of every architecture, then the trials."""

import math
from collections.abc import Mapping
from typing import Any

from kdray.evaluation.costs import CostConditions, CostMeasuring, Costs
from kdray.evaluation.trial_record import TrialRecord
from kdray.models.lineage import Lineage
from kdray.search.planner import Length, Planner
from kdray.search.run_search import run_search
from kdray.stages.bookkeeping import Bookkeeper
from kdray.stages.named_forms import check_speedups, forms_of
from kdray.stages.preparing import Material
from kdray.stages.session import Session
from kdray.stages.teaching import Lessons
from kdray.storage.files import write_json
from kdray.storage.records import read_record, write_record
from kdray.training.trial import Recipe, Trial


def measure_costs(session: Session, material: Material, lessons: Lessons) -> Costs:
    """Measure the costs of the teacher and of every architecture; record how, and the teacher's metrics and costs.

    They include the costs in the forms that the sweep names a metric of. Raises SpecError for an architecture without
    such a form.
    """
    sweep, paths, slots, screen = session.sweep, session.paths, session.slots, session.screen
    screen.stage("Costs of each architecture")
    slots.wait()  # a slot that is still starting would use the CPU and make latencies longer
    # Costs of two machines cannot be compared, so a sweep with trials keeps those of the machine where it began.
    earlier = read_record(CostConditions, paths.conditions) if len(session.ledger) else None
    measured_on = earlier.machine if earlier else None
    measuring = CostMeasuring(
        latency=sweep.latency,
        paths=paths,
        pool=slots,
        teachers=[teacher.model for teacher in material.teachers],
        measured_on=measured_on,
        forms=forms_of(sweep, session.ledger.records()),
    )
    costs = measuring.measure(
        sweep.students, lessons.sources, lambda done, count: screen.progress("architectures", done, count)
    )
    for note in costs.notes:
        screen.note(note)
    check_speedups(sweep, costs)
    write_record(paths.conditions, CostConditions(costs=costs.conditions, machine=costs.machine))
    teacher = lessons.metrics | costs.teacher
    write_json(paths.teacher_figures, teacher)
    lineage = lessons.lineage.with_costs(costs.by_teacher)
    write_record(paths.lineage, lineage)
    session.tracker.sweep(
        metrics={f"teacher.{name}": value for name, value in (teacher | _figures_of_models(lineage)).items()},
        tags={"kdray.measured": costs.conditions, **({} if costs.teacher else {"kdray.teacher_costs": "unknown"})},
    )
    return costs


def _figures_of_models(lineage: Lineage) -> dict[str, float]:
    """Name -> value, for each of several models that teach: `0.accuracy`, `1.accuracy`, ..."""
    if len(lineage.models) < 2:
        return {}
    return {
        f"{number}.{name}": value
        for number, model in enumerate(lineage.models)
        for name, value in model.figures.items()
    }


def _length(recipe: Recipe, lessons: Lessons) -> Length:
    count = recipe.training.evaluation_count(lessons.inputs.of(recipe.student).text_rows(recipe))
    # While the inner terms are alone, the head learns nothing: its answers say nothing about the student.
    return Length(count, first_compared=1 + math.floor(count * recipe.distillation.inner_first))


def search(session: Session, material: Material, lessons: Lessons, costs: Costs) -> list[TrialRecord]:
    """Run trials until the budget of the search is spent. Returns all trials, also those of earlier sessions."""
    sweep, paths = session.sweep, session.paths
    session.screen.stage("Search")
    planner = Planner(
        sweep.search,
        sweep.search_space,
        session.ledger,
        costs=lambda params: costs.of(sweep.recipe_of(params).student),
        length=lambda params: _length(sweep.recipe_of(params), lessons),
    )
    if planner.ignored_trials:
        session.screen.note(
            f"{planner.ignored_trials} trials of search.warm_start break a constraint of this sweep: the sampler does "
            "not use them."
        )

    def make_trial(number: int, params: Mapping[str, Any]) -> Trial:
        recipe = sweep.recipe_of(params)
        return Trial(
            recipe=recipe,
            inputs=lessons.inputs.of(recipe.student),
            seed=sweep.seed,  # one seed for all trials, so that they see the same batches
            target=paths.student(number),
        )

    bookkeeper = Bookkeeper(session)
    run_search(session.slots, planner, make_trial, bookkeeper.update)
    bookkeeper.remove_leftovers()
    return session.ledger.records()

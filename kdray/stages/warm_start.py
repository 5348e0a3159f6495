"""Which trials may be compared: those that were taught the same by the same, and differ in searched settings alone.

Trials of this sweep's earlier sessions must be; trials of another sweep that are may be shown to the sampler.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kdray.errors import StorageError
from kdray.evaluation.measuring import KNOWN
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.claim import different, ledger_in, settings_in
from kdray.search.ledger import Ledger
from kdray.search.searcher import EARLIER
from kdray.search.space import distributions, within
from kdray.storage.bucket_copies import looked_at
from kdray.storage.paths import SweepPaths, shown, sweep_paths
from kdray.sweep import Sweep

MATERIAL = "material"
"""The ledger's note of what its trials were taught, by content."""

CHECKPOINTS = "student.checkpoint"
"""In there: the weights of each, by its name."""

RECIPE = ("student", "distillation", "training")
WITHOUT_EFFECT = ("training.checkpoint_minutes",)


def comparable_trials(
    sweep: Sweep, paths: SweepPaths, ledger: Ledger, data: str, teacher: str, checkpoints: Mapping[str, str]
) -> list[str]:
    """Note in the ledger what its trials learn from, and which trials of `search.warm_start` the sampler shall know.

    `data`, `teacher` and those of the `checkpoints` that students are cut from are fingerprints. What came of the warm
    start is said in a sentence. Raises StorageError when the trials so far learnt from something else, and when none of
    the other sweep's can be taken.
    """
    now = _material(sweep, data, teacher, checkpoints)
    before = ledger.attr(MATERIAL)
    if before is not None and len(ledger) and (differences := _changed(before, now)):
        raise StorageError(
            f"{paths.root}: what its trials learnt from has changed since: {'; '.join(differences)} (fingerprints of "
            "the content). Restore it, give this sweep another name (--set name=...), or start over with --fresh."
        )
    known = {**now, CHECKPOINTS: {**(before or {}).get(CHECKPOINTS, {}), **now[CHECKPOINTS]}}
    if before != known:
        ledger.set_attr(MATERIAL, known)
    if sweep.search.warm_start is None:
        return []
    if ledger.attr(EARLIER) is None:  # noted once it stays, whatever becomes of the other folder: draws depend on it
        ledger.set_attr(EARLIER, _taken(sweep, sweep_paths(sweep.search.warm_start), now, paths))
    return [_said(**ledger.attr(EARLIER))]


def _material(sweep: Sweep, data: str, teacher: str, checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """What decides, beside its own settings, what a trial measures."""
    training = sweep.teacher.training.model_dump(mode="json") if sweep.teacher.training else {}
    return {
        "data": data,
        "teacher": teacher,
        "teacher.training": {name: value for name, value in training.items() if name != "checkpoint_minutes"},
        "task": sweep.task.model_dump(mode="json"),
        "transfer.precision": sweep.transfer.precision,
        "seed": sweep.seed,
        CHECKPOINTS: dict(checkpoints),
    }


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of it differs; checkpoints that only one of them knows say nothing of the trials of both."""
    ours, theirs = now.get(CHECKPOINTS, {}), before.get(CHECKPOINTS, {})
    both = ours.keys() & theirs.keys()
    known = {CHECKPOINTS: {name: theirs[name] for name in both}}, {CHECKPOINTS: {name: ours[name] for name in both}}
    return different({**before, **known[0]}, {**now, **known[1]})


def _said(folder: str, trials: Sequence[Any], left: Mapping[str, int]) -> str:
    known = f"The sampler knows {len(trials)} of the {len(trials) + sum(left.values())} trials of {folder}"
    return f"{known}; left out: {_reasons(left)}." if left else f"{known}."


def _reasons(left: Mapping[str, int]) -> str:
    return ", ".join(f"{number} ({reason})" for reason, number in left.items())


def _taken(sweep: Sweep, other: SweepPaths, now: Mapping[str, Any], own: SweepPaths) -> dict[str, Any]:
    if other.root == own.root:
        raise StorageError(f"search.warm_start {shown(other.root)}: is the sweep's own folder. Name another one.")
    try:
        with looked_at(other) as there:
            settings, ledger = settings_in(there), ledger_in(there)
    except StorageError as error:
        raise StorageError(
            f"search.warm_start {shown(other.root)}: no trials can be taken from there. {error}"
        ) from None
    differences = _changed(ledger.attr(MATERIAL) or {}, now)
    if differences:
        raise StorageError(
            f"search.warm_start {shown(other.root)}: its trials measured something else: {'; '.join(differences)} "
            "(fingerprints of the content). Name a sweep over the same data, task and teacher, or leave it out."
        )
    trials, left = [], Counter[str]()
    for record in ledger.records():
        params, reason = _as_drawn(sweep, _fixed(settings), record)
        if reason:
            left[reason] += 1
        else:
            trials.append({"params": params, "metrics": record.metrics})
    if not trials:
        why = _reasons(left) or "it has none"
        raise StorageError(
            f"search.warm_start {shown(other.root)}: none of its trials can be taken: {why}. Name another sweep, or "
            "leave it out."
        )
    return {"folder": shown(other.root), "trials": trials, "left": dict(left)}


def _as_drawn(sweep: Sweep, fixed: Mapping[str, Any], record: TrialRecord) -> tuple[dict[str, Any], str | None]:
    """The settings by which this sweep could have drawn the very same trial, and why it could not."""
    theirs = {**fixed, **record.params}
    params = {name: theirs.get(name) for name in sweep.space}
    if record.state != "completed":
        return params, record.state
    for name, distribution in distributions(sweep.space).items():
        if not within(distribution, name, params[name]):
            return params, f"{name} {params[name]} is not in the space"
    for name, value in _fixed(sweep.identity()).items():
        if name not in sweep.space and name not in WITHOUT_EFFECT and theirs.get(name) != value:
            return params, f"{name} is {theirs.get(name)}, here {value}"
    missing = [name for name in sweep.search.objectives if name not in KNOWN and name not in record.metrics]
    return params, f"without {missing[0]}" if missing else None


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the recipe by dotted name, out of a sweep's in JSON."""
    return {f"{part}.{name}": value for part in RECIPE for name, value in settings[part].items()}

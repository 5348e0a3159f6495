"""Names and numbers for people: of every metric of every task, by what the metric itself says."""

import pytest

from kdray.evaluation.formatting import (
    format_change,
    format_difference,
    format_distance,
    format_metric,
    has_points,
    heading,
    noun,
)
from kdray.evaluation.statistics import Interval
from kdray.tasks.kinds import task_metrics

NAMES = {
    "accuracy": ("accuracy", "accuracy"),
    "average_precision": ("average precision", "average precision"),
    "latency_p95_ms": ("p95 latency", "p95 latency"),
    "macro_f1": ("macro F1", "macro F1"),
    "mae": ("MAE", "MAE"),
    "mcc": ("MCC", "MCC"),
    "mse": ("MSE", "MSE"),
    "pearson": ("Pearson", "Pearson correlation"),
    "span_f1": ("span F1", "span F1"),
    "subset_accuracy": ("subset accuracy", "subset accuracy"),
    "token_accuracy": ("token accuracy", "token accuracy"),
}


@pytest.mark.parametrize(("metric", "names"), NAMES.items(), ids=NAMES)
def test_a_metric_has_a_heading_and_a_name_in_sentences(metric: str, names: tuple[str, str]) -> None:
    assert (heading(metric), noun(metric)) == names


def test_no_metric_of_a_task_is_shown_by_its_name_in_code() -> None:
    for metric in task_metrics():
        assert "_" not in heading(metric) + noun(metric)


def test_only_metrics_in_the_units_of_the_data_have_no_points() -> None:
    assert {name for name in (*task_metrics(), "retention", "agreement", "loss") if not has_points(name)} == {
        "loss",
        "mae",
        "mse",
        "perplexity",
    }


DIFFERENCES = {
    "span_f1": (Interval(0.0123, -0.004, 0.03, 0.95), "+1.2 points (95%: -0.4 to +3.0)"),
    "pearson": (Interval(-0.02, -0.03, -0.01, 0.95), "-2.0 points (95%: -3.0 to -1.0)"),
    "mse": (Interval(-0.25, -0.5, 0.0, 0.95), "-0.2500 (95%: -0.5000 to +0.000)"),
    "perplexity": (Interval(-12.3, -14.4, 0.21, 0.95), "-12.30 (95%: -14.40 to +0.2100)"),
    "mae": (Interval(1234.5, 1200.0, 12345.0, 0.95), "+1,234 (95%: +1,200 to +12,345)"),
}


@pytest.mark.parametrize(("metric", "case"), DIFFERENCES.items(), ids=DIFFERENCES)
def test_a_difference_is_in_points_or_in_the_units_of_the_data(metric: str, case: tuple[Interval, str]) -> None:
    difference, text = case
    assert format_difference(metric, difference) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (Interval(-12.3, -14.4, 0.21, 0.95), "lower by 12.30 (95%: -0.2100 to 14.40)"),
        (Interval(1.54, -2.242, 5.588, 0.95), "higher by 1.540 (95%: -2.242 to 5.588)"),
        (Interval(0.0, 0.0, 0.0, 0.95), "higher by 0.000 (95%: 0.000 to 0.000)"),
    ],
)
def test_a_change_says_by_how_much_a_value_is_lower_or_higher(difference: Interval, text: str) -> None:
    assert format_change("perplexity", difference) == text


def test_a_distance_has_no_sign() -> None:
    assert format_distance("macro_f1", 0.91, 0.95) == "4.0 points"
    assert format_distance("mse", 2.5, 0.5) == "2.000"


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [("pearson", 0.85, "0.8500"), ("mse", 0.5, "0.5000"), ("mse", 1234567.8, "1,234,568"), ("mae", 12.0, "12.00")],
)
def test_a_value_in_the_units_of_the_data_has_four_digits(metric: str, value: float, text: str) -> None:
    assert format_metric(metric, value) == text

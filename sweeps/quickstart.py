"""A whole sweep on the spot: generated reviews, a teacher trained from scratch, sixteen students, one chosen.

    kdray run sweeps/quickstart.py

It needs no model hub, no GPU and no server. Two cores of an AMD EPYC without bf16 took 3 min 20 s up to the end of the
search, 40 s for its controls and a minute and a half to confirm the choice: 5 min 43 s in all. What it comes to depends
on the machine's arithmetic: there the teacher had 0.900 validation accuracy; the chosen student, of two of its four
layers, 0.8985 on the test rows (95 %: 0.884 to 0.911) at 1.7 times the speed; students of one layer kept 91 to 95 % of
the teacher. Neither distillation (+0.0 points, -1.5 to +1.6) nor the search (+0.2, -0.8 to +1.2) was shown to help on
these rows, and the report says so.

A review has up to two clauses with negation, degrees, contrast and other
people's opinions, and the training labels are one unsure annotator's votes: one layer cannot follow, two nearly can.
"""

from ray import tune

from kdray import (
    Choose,
    Confirm,
    Data,
    FreshTransformer,
    GeneratedReviews,
    Halving,
    Latency,
    Search,
    Sweep,
    Teacher,
    TextClassification,
    Training,
    main,
)

sweep = Sweep(
    name="quickstart",
    task=TextClassification(max_length=48),
    data=Data(source=GeneratedReviews(train_rows=12_000, validation_rows=2_000, test_rows=2_000, sureness=1.6)),
    teacher=Teacher(
        model=FreshTransformer(layers=4, width=64),
        training=Training(epochs=8, batch_size=64, learning_rate=1e-3),
    ),
    training=Training(epochs=2, batch_size=64, learning_rate=1e-3),
    latency=Latency(length=16, warmup=20, repeats=200),
    space={
        "student.depth": tune.randint(1, 5),
        "distillation.temperature": tune.uniform(1.0, 8.0),
        "distillation.alpha": tune.uniform(0.3, 1.0),
        "training.learning_rate": tune.loguniform(3e-4, 3e-3),
    },
    search=Search(trials=16, objectives=("accuracy", "latency_ms"), stopping=Halving()),
    choose=Choose(smallest="latency_ms", retention=0.97),
    confirm=Confirm(candidates=2, seeds=2),
    smoke={
        "data.source": GeneratedReviews(train_rows=4_000, validation_rows=400, test_rows=400),
        "teacher.training.epochs": 4,
        "teacher.training.batch_size": 32,
        "teacher.above_chance": 0.0,
        "training.epochs": 1,
        "search.trials": 2,
        "confirm.candidates": 1,
        "confirm.seeds": 1,
        "slots.count": 1,
    },
)

if __name__ == "__main__":
    main(sweep)

"""A complete sweep that needs no downloads: generated reviews, a teacher trained from scratch, sixteen students.

    kdray run sweeps/quickstart.py

It needs no model hub, no GPU and no server. On two cores of an AMD EPYC without bf16 it took 5 min 43 s: 3 min 20 s
until the end of the search, 40 s for the controls, and a minute and a half to confirm the choice. The result depends
on the arithmetic of the machine. There the teacher had a validation accuracy of 0.900. The chosen student had two of
its four layers, an accuracy of 0.8985 on the test rows (95 %: 0.884 to 0.911), and 1.7 times the speed. Students of
one layer kept 91 to 95 % of the teacher. Neither distillation (+0.0 points, -1.5 to +1.6) nor the search (+0.2, -0.8
to +1.2) was shown to help on these rows, and the report says so.

A review has up to two clauses with negation, degrees, contrast and the opinions of other people. The training labels
are the votes of one annotator who is not sure. One layer is too few for this task, and two layers are nearly enough.
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
    data=Data(
        source=GeneratedReviews(train_rows=400, validation_rows=1_000, test_rows=2_000, unlabelled_rows=6_000),
        unlabelled="unlabelled",
    ),
    teacher=Teacher(
        model=FreshTransformer(layers=4, width=64),
        data=Data(source=GeneratedReviews(train_rows=10_000, seed=1)),
        training=Training(epochs=5, batch_size=64, learning_rate=1e-3),
    ),
    training=Training(epochs=3, batch_size=64, learning_rate=1e-3),
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

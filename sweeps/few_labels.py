"""Distil a teacher that was fine-tuned on 769 labelled sentences of SST-2 into a student that reads all 6,920.

    kdray run sweeps/few_labels.py                    # needs the model hub and the data hub once
    kdray run sweeps/few_labels.py --set data.source=DIR --set data.columns=text,label --set task.text=text \
        --set teacher.model=DIR                       # local folders for both
    ray submit cluster.yaml sweeps/few_labels.py -- --trials 64 --require-cluster

The other sentences are text without labels: only the teacher answers them. For labels and text of your own, give
`data.source` and `data.unlabelled`, and leave out `data.max_labelled`.

On two cores without bf16, with MiniLM-L6-H384 as teacher.model, `--trials 8`, `--set space.student.depth=[1,2]`, `--set
training.epochs=3`, `--set confirm.candidates=1` and `--set slots.count=2`, it took 27 minutes. The teacher has an
accuracy of 0.836 on the 1,821 test rows. The chosen student has one of its six layers, 0.808 (0.789 to 0.825), 5.2
times the speed. Distillation brought 5.7 points (3.8 to 7.5), of which more text brought 4.7 (2.8 to 6.6).
docs/performance.md has the table.
"""

from ray import tune

from kdray import Choose, Data, Halving, Search, Sweep, Teacher, TextClassification, Training, main

sweep = Sweep(
    name="few_labels",
    task=TextClassification(text="sentence", label="label", max_length=64),
    data=Data(source="stanfordnlp/sst2", max_labelled=769),
    teacher=Teacher(
        model="nreimers/MiniLM-L6-H384-uncased", training=Training(epochs=6, batch_size=16, learning_rate=5e-5)
    ),
    training=Training(epochs=4),
    space={
        "student.depth": tune.randint(1, 4),
        "distillation.temperature": tune.uniform(1.0, 8.0),
        "distillation.alpha": tune.uniform(0.5, 1.0),
        "training.learning_rate": tune.loguniform(5e-5, 5e-4),
    },
    search=Search(trials=16, objectives=("accuracy", "latency_ms"), stopping=Halving()),
    choose=Choose(smallest="latency_ms", retention=0.95),
    smoke={
        "data.max_rows": 256,
        "teacher.training.epochs": 1,
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

"""Distil BERT, fine-tuned on SST-2, into a student of one to six layers.

    kdray run sweeps/sst2.py                          # needs the model hub and the data hub once
    kdray run sweeps/sst2.py --set data.source=DIR --set data.columns=text,label --set task.text=text \
        --set teacher.model=DIR                       # local folders for both
    ray submit cluster.yaml sweeps/sst2.py -- --trials 64 --require-cluster

On two cores without bf16, with MiniLM-L6-H384 as teacher.model, `--set space.student.depth=[1,2,3]` and `--set
slots.count=2`, 24 trials took 39 min 55 s, without the confirmation. The teacher had 0.882 (872 dev rows). The chosen
student has 3 of 6 layers, 0.8635 (it keeps 97.9 %) and 2.0 times the speed. The best student of 2 layers keeps 95.1 %
at 2.9 times the speed, the best one of one layer 93.9 % at 5.7 times the speed. 12 of 24 trials were stopped early;
98.7 % of the slots' time was training. docs/performance.md has the confirmed figures of such a student on the 1,821
test rows, beside its controls.
"""

from ray import tune

from kdray import Choose, Data, Halving, Search, Sweep, Teacher, TextClassification, Training, main

sweep = Sweep(
    name="sst2",
    task=TextClassification(text="sentence", label="label", max_length=64),
    data=Data(source="stanfordnlp/sst2"),
    teacher=Teacher(model="google-bert/bert-base-uncased", training=Training(epochs=3, learning_rate=5e-5)),
    training=Training(epochs=3),
    space={
        "student.depth": tune.randint(1, 7),
        "distillation.temperature": tune.uniform(1.0, 8.0),
        "distillation.alpha": tune.uniform(0.3, 1.0),
        "training.learning_rate": tune.loguniform(3e-5, 4e-4),
    },
    search=Search(trials=24, objectives=("accuracy", "latency_ms"), stopping=Halving()),
    choose=Choose(smallest="latency_ms", retention=0.97),
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

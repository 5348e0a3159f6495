"""Distil BERT, fine-tuned to find the emotions in comments (GoEmotions), into a student of one to six layers.

    kdray run sweeps/goemotions.py                    # needs the model hub and the data hub once
    kdray run sweeps/goemotions.py --set data.source=DIR --set data.config=null --set data.columns=text,labels,id \
        --set task.separator=, --set "task.labels=$(paste -sd, DIR/labels.txt)" \
        --set teacher.model=DIR                       # local folders for both

A comment has one or more of 28 labels: 27 emotions, and neutral. Some labels are rare: of 43,410 comments to train on,
14,219 are neutral, and 77 have grief. So the quality is macro F1, in which each label counts as much as any other, and
each label has a threshold of its own. A fine-tuned BERT had a macro F1 of 46 % on the test rows (Demszky,
Movshovitz-Attias, Ko, Cowen, Nemade, Ravi 2020, https://aclanthology.org/2020.acl-main.372).
"""

from ray import tune

from kdray import Choose, Data, Halving, MultiLabel, Search, Sweep, Teacher, Training, main

sweep = Sweep(
    name="goemotions",
    task=MultiLabel(text="text", label="labels", max_length=64),
    data=Data(source="google-research-datasets/go_emotions", config="simplified"),
    teacher=Teacher(model="google-bert/bert-base-cased", training=Training(epochs=4, learning_rate=5e-5)),
    training=Training(epochs=4),
    space={
        "student.depth": tune.randint(1, 7),
        "distillation.temperature": tune.uniform(1.0, 8.0),
        "distillation.alpha": tune.uniform(0.3, 1.0),
        "training.learning_rate": tune.loguniform(3e-5, 4e-4),
    },
    search=Search(trials=24, objectives=("macro_f1", "latency_ms"), stopping=Halving()),
    choose=Choose(smallest="latency_ms", retention=0.96),
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

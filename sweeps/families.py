"""Distil BERT, fine-tuned on SST-2, into students of four families: one front over all of them.

    kdray run sweeps/families.py                      # needs the model hub and the data hub once
    kdray run sweeps/families.py --set data.source=DIR --set data.columns=text,label --set task.text=text \
        --set teacher.model=DIR                       # local folders for both
    ray submit cluster.yaml sweeps/families.py -- --trials 128 --require-cluster

A trial draws its family first, then the settings that this family has. All are timed as ONNX graphs (`pip install
'kdray[onnx]'`), because recurrent, convolutional and static students are served so.
"""

from ray import tune

from kdray import (
    Augmentation,
    Choose,
    Data,
    Halving,
    Search,
    Sweep,
    Teacher,
    TextClassification,
    Training,
    main,
)

sweep = Sweep(
    name="families",
    task=TextClassification(text="sentence", label="label", max_length=64),
    data=Data(source="stanfordnlp/sst2"),
    teacher=Teacher(model="google-bert/bert-base-uncased", training=Training(epochs=3, learning_rate=5e-5)),
    augmentation=Augmentation(copies=2, ways=("mask", "ngrams")),
    training=Training(epochs=3, batch_size=32),
    space={
        "student.family": ["transformer", "recurrent", "convolutional", "static"],
        "student.depth": [1, 2],
        "student.embedding_width": [100, 200],
        "student.width": [100, 200],
        "student.filters": [100, 200],
        "distillation.temperature": tune.uniform(1.0, 8.0),
        "distillation.alpha": tune.uniform(0.5, 1.0),
        "training.learning_rate": tune.loguniform(1e-4, 3e-3),
    },
    search=Search(trials=48, objectives=("accuracy", "onnx_latency_ms"), stopping=Halving()),
    choose=Choose(smallest="onnx_latency_ms", retention=0.9),
    smoke={
        "data.max_rows": 256,
        "augmentation.copies": 1,
        "teacher.training.epochs": 1,
        "teacher.above_chance": 0.0,
        "training.epochs": 1,
        "search.trials": 4,
        "search.sampler": "random",
        "confirm.candidates": 1,
        "confirm.seeds": 1,
        "slots.count": 1,
        "space.student.depth": [1],
        "space.student.embedding_width": [100],
        "space.student.width": [100],
        "space.student.filters": [100],
    },
)

if __name__ == "__main__":
    main(sweep)

"""Distil BERT, fine-tuned on SST-2, into a bidirectional LSTM that reads with BERT's embeddings.

    kdray run sweeps/bilstm.py                        # needs the model hub and the data hub once
    kdray run sweeps/bilstm.py --set data.source=DIR --set data.columns=text,label --set task.text=text \
        --set teacher.model=DIR                       # local folders for both
    ray submit cluster.yaml sweeps/bilstm.py -- --trials 64 --require-cluster

An LSTM shares no layer with its teacher, so it learns the task from what the teacher says. Changed copies of the
sentences give it more to learn from (Tang, Lu, Liu, Mou, Vechtomova and Lin 2019, arXiv:1903.12136). It is served as an
ONNX graph (`pip install 'kdray[onnx]'`), so its speed is measured there.
"""

from ray import tune

from kdray import (
    Augmentation,
    Choose,
    Data,
    Halving,
    RecurrentStudent,
    Search,
    Sweep,
    Teacher,
    TextClassification,
    Training,
    main,
)

sweep = Sweep(
    name="bilstm",
    task=TextClassification(text="sentence", label="label", max_length=64),
    data=Data(source="stanfordnlp/sst2"),
    teacher=Teacher(model="google-bert/bert-base-uncased", training=Training(epochs=3, learning_rate=5e-5)),
    student=RecurrentStudent(embedding_width=200),
    augmentation=Augmentation(ways=("mask", "ngrams")),
    training=Training(epochs=4, batch_size=64),
    space={
        "student.depth": [1, 2],
        "student.width": [100, 200],
        "augmentation.copies": [0, 4],
        "distillation.temperature": tune.uniform(1.0, 8.0),
        "distillation.alpha": tune.uniform(0.5, 1.0),
        "training.learning_rate": tune.loguniform(5e-4, 5e-3),
    },
    search=Search(trials=24, objectives=("accuracy", "onnx_latency_ms"), stopping=Halving()),
    choose=Choose(smallest="onnx_latency_ms", retention=0.91),
    smoke={
        "data.max_rows": 256,
        "teacher.training.epochs": 1,
        "teacher.above_chance": 0.0,
        "training.epochs": 1,
        "search.trials": 2,
        "confirm.candidates": 1,
        "confirm.seeds": 1,
        "slots.count": 1,
        "space.student.width": [100],
        "student.depth": 1,
    },
)

if __name__ == "__main__":
    main(sweep)

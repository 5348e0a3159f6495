"""Search what the layers of a student should learn from those of its teacher: SST-2 with 769 labelled sentences.

    kdray run sweeps/inner_terms.py                   # needs the model hub and the data hub once
    kdray run sweeps/inner_terms.py --set data.source=DIR --set data.columns=text,label --set task.text=text \
        --set teacher.model=DIR                       # local folders for both
    ray submit cluster.yaml sweeps/inner_terms.py -- --trials 64 --require-cluster

The terms compare hidden states, attention, and relations between tokens. A weight of 0 is one of the choices for each,
so the search may do without. Besides the other controls there is one with the same settings and logits alone: the
report says what the inner terms add to them. docs/losses.md describes the terms.
"""

from ray import tune

from kdray import Choose, Data, Distillation, Search, Sweep, Teacher, TextClassification, Training, main

sweep = Sweep(
    name="inner_terms",
    task=TextClassification(text="sentence", label="label", max_length=64),
    data=Data(source="stanfordnlp/sst2", max_labelled=769),
    teacher=Teacher(
        model="nreimers/MiniLM-L6-H384-uncased", training=Training(epochs=6, batch_size=16, learning_rate=5e-5)
    ),
    distillation=Distillation(temperature=4.0, alpha=0.9),
    training=Training(epochs=3, learning_rate=2e-4),
    space={
        "student.depth": tune.randint(2, 4),
        "distillation.hidden_mse": tune.choice([0.0, 0.1, 1.0]),
        "distillation.attention_maps": tune.choice([0.0, 1.0]),
        "distillation.relations": tune.choice([0.0, 1.0]),
        "distillation.layer_map": tune.choice(["evenly", "last", "final"]),
        "training.learning_rate": tune.loguniform(1e-4, 5e-4),
    },
    search=Search(trials=16, objectives=("accuracy", "latency_ms")),
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

"""Distil BERT, fine-tuned to find names in tweets and comments (WNUT-17), into a student of one to six layers.

    kdray run sweeps/wnut17.py                        # needs the model hub and the data hub once
    kdray run sweeps/wnut17.py --set data.source=DIR --set data.format=conll --set data.train=wnut17train.conll \
        --set data.validation=emerging.dev.conll --set data.test=emerging.test.annotated --set task.label=tags \
        --set teacher.model=DIR                       # local folders for both

A row is a sentence: its words, and a tag for each word. The tags mark persons, locations, corporations, groups,
products and creative works in the scheme BIO. The quality is the F1 of whole spans. The names in the rows to test on
hardly ever occur in those to train on, so figures are low: in the shared task the best system had an F1 of 41.9 %
(Derczynski, Nichols, van Erp, Limsopatham 2017, https://aclanthology.org/W17-4418). Capitals help to find names, so the
teacher is a cased model. Which layers a student copies from its teacher matters much for tags, so that is searched.
"""

from ray import tune

from kdray import Choose, Data, Halving, Search, Sweep, Teacher, TokenClassification, Training, main

sweep = Sweep(
    name="wnut17",
    task=TokenClassification(text="tokens", label="ner_tags", max_length=128),
    # The dataset's own branch has a loading script, which is not run; this one has the same rows as Parquet.
    data=Data(source="leondz/wnut_17", revision="refs/convert/parquet"),
    teacher=Teacher(model="google-bert/bert-base-cased", training=Training(epochs=5, learning_rate=5e-5)),
    training=Training(epochs=5),
    space={
        "student.depth": tune.randint(1, 7),
        "student.layers": tune.choice(["first", "evenly"]),
        "distillation.temperature": tune.uniform(1.0, 8.0),
        "distillation.alpha": tune.uniform(0.3, 1.0),
        "training.learning_rate": tune.loguniform(3e-5, 4e-4),
    },
    search=Search(trials=24, objectives=("span_f1", "latency_ms"), stopping=Halving()),
    choose=Choose(smallest="latency_ms", retention=0.92),
    smoke={
        "data.max_rows": 512,
        "teacher.training.epochs": 3,
        "teacher.training.batch_size": 8,
        "teacher.training.learning_rate": 2e-4,
        "teacher.above_chance": 0.0,
        "training.epochs": 1,
        "training.batch_size": 8,
        "search.trials": 2,
        "confirm.candidates": 1,
        "confirm.seeds": 1,
        "slots.count": 1,
    },
)

if __name__ == "__main__":
    main(sweep)

"""Distil BERT, fine-tuned to score how similar two sentences are (STS benchmark), into a student of one to six layers.

    kdray run sweeps/stsb.py                          # needs the model hub and the data hub once
    kdray run sweeps/stsb.py --set data.source=DIR --set data.format=tsv \
        --set data.columns=genre,file,year,number,score,sentence1,sentence2,... --set data.train=sts-train.csv \
        --set data.validation=sts-dev.csv --set data.test=sts-test.csv \
        --set teacher.model=DIR                       # local folders for both

The files sts-*.csv have tabs between the cells, quotes that are characters, no header, and in some rows further cells:
data.format=tsv and the dots behind the columns say so. The scores are 0 (unrelated) to 5 (the same meaning), and the
students answer in these units. The model reads both sentences together. The quality is Pearson's correlation with the
scores (Cer, Diab, Agirre, Lopez-Gazpio, Specia 2017, https://aclanthology.org/S17-2001). The copy of these data in GLUE
has no scores for the test rows, and other copies have scores from 0 to 1.

The temperature is not searched: a number has no distribution that a temperature could change. Which layers a student
copies from its teacher can matter more than all else, so that is searched (docs/performance.md).
"""

from ray import tune

from kdray import Choose, Data, Halving, Regression, Search, Sweep, Teacher, Training, main

sweep = Sweep(
    name="stsb",
    task=Regression(text="sentence1", pair="sentence2", label="score", range=(0, 5), max_length=128),
    data=Data(source="mteb/stsbenchmark-sts"),
    teacher=Teacher(model="google-bert/bert-base-uncased", training=Training(epochs=4, learning_rate=5e-5)),
    training=Training(epochs=4),
    space={
        "student.depth": tune.randint(1, 7),
        "student.layers": tune.choice(["first", "evenly"]),
        "distillation.alpha": tune.uniform(0.3, 1.0),
        "training.learning_rate": tune.loguniform(3e-5, 4e-4),
    },
    search=Search(trials=24, objectives=("pearson", "latency_ms"), stopping=Halving()),
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

"""Distil BERT by masked-language modelling into a general student of two to six layers, from text without labels.

    kdray run sweeps/general.py                       # needs the model hub and the data hub once
    kdray run sweeps/general.py --set data.source=DIR --set data.config=null --set teacher.model=DIR  # local folders
    kdray run sweeps/sst2.py --set student.checkpoint=results/general/chosen       # then a student of a task from it
    ray submit cluster.yaml sweeps/general.py -- --trials 32 --require-cluster

A row is a whole article of the Simple English Wikipedia (about 240,000). The loss has the three terms of DistilBERT
(arXiv:1910.01108): the teacher's probabilities, the masked tokens, and the cosine of the last hidden states, with the
weights of its training, 5 : 2 : 1, divided by 7. The texts are masked anew in each epoch, so the teacher runs in the
slots. A teacher that does not know your kind of text is fine-tuned first: `--set 'teacher.training={"epochs": 1}'`.
docs/language-models.md describes both steps.
"""

from ray import tune

from kdray import Choose, Data, Distillation, Halving, MaskedLM, Search, Sweep, Teacher, Training, main

sweep = Sweep(
    name="general",
    task=MaskedLM(text="text", block=256),
    data=Data(source="wikimedia/wikipedia", config="20231101.simple", validation_fraction=0.005, test_fraction=0.005),
    teacher=Teacher(model="google-bert/bert-base-uncased"),
    # The last layer of the student learns from the last one of the teacher.
    distillation=Distillation(temperature=2.0, alpha=0.714, hidden_cosine=0.143, layer_map="final"),
    training=Training(epochs=3, batch_size=64, microbatch=16),
    space={
        "student.depth": tune.randint(2, 7),
        "distillation.temperature": tune.uniform(1.0, 2.0),
        "distillation.alpha": tune.uniform(0.3, 1.0),
        "training.learning_rate": tune.loguniform(1e-4, 1e-3),
    },
    search=Search(trials=16, objectives=("perplexity", "latency_ms"), stopping=Halving()),
    choose=Choose(smallest="latency_ms", retention=0.7),
    smoke={
        "data.max_rows": 64,
        "task.block": 32,
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

"""Distil SmolLM2-135M, a causal language model, into students of a third or a half of its 30 layers.

    kdray run sweeps/smollm.py                        # needs the model hub and the data hub once
    kdray run sweeps/smollm.py --set data.source=DIR --set data.config=null --set teacher.model=DIR  # local folders
    ray submit cluster.yaml sweeps/smollm.py -- --trials 32 --require-cluster

A row is a whole article of the Simple English Wikipedia. The teacher answers each text once: the 16 most probable of
its 49,152 tokens are stored for each token of the text, 20,000 articles need about 1 GB. Which layers a student keeps
is searched, too. docs/language-models.md has the limits.
"""

from ray import tune

from kdray import CausalLM, Choose, Data, Distillation, Halving, Search, Sweep, Teacher, Training, main

sweep = Sweep(
    name="smollm",
    task=CausalLM(text="text", block=256, top_k=16),
    data=Data(
        source="wikimedia/wikipedia",
        config="20231101.simple",
        validation_fraction=0.005,
        test_fraction=0.005,
        max_rows=20_000,
    ),
    teacher=Teacher(model="HuggingFaceTB/SmolLM2-135M"),
    distillation=Distillation(temperature=1.0, alpha=0.7),
    training=Training(epochs=2, batch_size=32, microbatch=8),
    space={
        "student.depth": tune.choice([10, 15]),
        "student.layers": tune.choice(["evenly", "first"]),
        "distillation.temperature": tune.uniform(1.0, 3.0),
        "distillation.alpha": tune.uniform(0.3, 1.0),
        "training.learning_rate": tune.loguniform(5e-5, 5e-4),
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

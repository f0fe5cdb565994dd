# %% [markdown]
"""
# GradPruner on a task

GradPruner looks at the gradients of the first steps of a fine-tuning, which say how much the task needs each layer,
removes the layers that it needs least, and fine-tunes what is left. [Its page](../docs/methods/gradpruner.md) has the
equations, the settings and what was measured.

The task is one that every Python can make: which package of the standard library does a docstring come from?
"""

# %%
from pathlib import Path

import docstrings
import matplotlib.pyplot as plt
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import secateur as sc
from secateur.sample import fetch_sample_model

disable_progress_bar()

# %% tags=["parameters"]
MODEL = fetch_sample_model()  # 93 MB, once; or a hub id, or a directory
DATA = Path("gradpruner-task")  # made below; or a folder of yours with train.jsonl and test.jsonl
SIZES = {"num_train": 160, "num_validation": 16, "num_test": 40}
DROP = 0.2  # of the layers
METHOD = {"absorb": "projection", "merge": "none"}  # better on small models than the defaults, the published settings
TUNING = {"train": "full", "epochs": 1, "batch_size": 8, "learning_rate": 1e-4}
OUT = Path("gradpruner-out")

# %% [markdown]
"""
## The task
"""

# %%
docstrings.main(DATA)
print((DATA / "train.jsonl").read_text().split("\n", 1)[0])

# %% [markdown]
"""
## Prune and fine-tune

One call: measure the dense model, score its layers, cut, fine-tune, prove and measure what is written. With
`tune_dense` the dense model is fine-tuned alike, for a fair comparison.
"""

# %%
result = sc.tune(
    MODEL,
    task=sc.TaskSettings(data=str(DATA), **SIZES),
    target=sc.Target(drop=DROP),
    method=sc.METHODS["gradpruner"](**METHOD),
    tuning=sc.FineTuning(**TUNING),
    tune_dense=True,
    out=OUT,
    overwrite=True,
)
plan, record = result.plan, result.record
print(f"layers {plan.dropped} of {plan.num_layers} are gone")
print(f"written, read again, and the same: logits within {result.proof.max_difference:.2g}")

# %% [markdown]
"""
## What it cost and what it bought
"""

# %%
for name, metrics in record["metrics"].items():
    task = metrics["task"]
    low, high = task["interval"]
    print(
        f"{name:>11}: {metrics['num_layers']} layers, {metrics['num_parameters'] / 1e6:5.1f} M parameters, "
        f"{task['metric']} {task['value']:.3f} (95 %: {low:.3f} to {high:.3f})"
    )

# %% [markdown]
"""
## Which layers the task needs

The scores differ by powers of ten. Below them, both fine-tunings.
"""

# %%
colours = ["#b3261e" if layer in plan.dropped else "#1a6b3c" for layer in range(plan.num_layers)]
figure, (scores, losses) = plt.subplots(2, figsize=(9, 5), layout="constrained")
scores.bar(range(plan.num_layers), plan.scores, color=colours)
scores.set(yscale="log", xlabel="layer", ylabel="score", title="Scores of the layers; red ones were removed")
for name, report in {"pruned": record["training"], "dense": record["metrics"]["dense_tuned"]["training"]}.items():
    losses.plot([each["step"] for each in report["losses"]], [each["loss"] for each in report["losses"]], label=name)
losses.set(xlabel="step", ylabel="loss", title="Fine-tuning")
losses.legend()
figure.savefig(OUT / "scores.png")

# %% [markdown]
"""
## Use it

The result is an ordinary checkpoint; its report is `secateur/report.html` in it.
"""

# %%
model, tokenizer = AutoModelForCausalLM.from_pretrained(OUT), AutoTokenizer.from_pretrained(OUT)
for example in sc.load_examples(str(DATA / "test.jsonl"))[:3]:
    prompt = tokenizer(example.prompt, return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    print(example.prompt, f"-> {tokenizer.decode(written)!r}, where {example.completion!r} is right")

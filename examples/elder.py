# %% [markdown]
"""
# ELDeR on a small model

ELDeR learns how much each decoder layer matters, prepares the model for the loss of those that matter least, and
removes them. Here it takes six of the 30 layers of SmolLM2-135M-Instruct, in memory.
[Its page](../docs/methods/elder.md) has the equations, the settings and what was measured. `secateur demo` does the
same on the command line with more text and more steps, and proves the checkpoint that it writes.

What may be changed is in the second cell: a model of yours, text of yours.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import secateur as sc
from secateur.sample import fetch_sample_model

disable_progress_bar()

# %% tags=["parameters"]
MODEL = fetch_sample_model()  # 93 MB, once; or a hub id, or a directory
DATA = "python-docs"  # the help texts of your own Python; or a .txt .jsonl .json .csv .parquet file
SIZES = {"sequence_length": 256, "num_sequences": 16, "num_eval_sequences": 12}
DROP = 6  # layers; or a share of them, 0.2
SETTINGS = {"gate_sequences": 2, "joint_steps": 8, "shortlist": 3, "learning_rate": 1e-4}
PROMPT = "The for statement is used to"
OUT = Path("elder-out")

# %% [markdown]
"""
## The dense model

Calibration text and held-out text come from the same source and share no paragraph.
"""

# %%
tokenizer = AutoTokenizer.from_pretrained(MODEL)
dense = AutoModelForCausalLM.from_pretrained(MODEL)
calibration, held_out = sc.TextSettings(data=DATA, **SIZES).load(tokenizer, seed=0)

found = {"dense": sc.perplexity(dense, held_out)}
print(f"{dense.config.num_hidden_layers} layers, perplexity {found['dense'].perplexity:.2f}")

# %% [markdown]
"""
## Choose, prepare, cut

One call, which changes the model in place. The plan that it returns says which layers went, and why.
"""

# %%
model = AutoModelForCausalLM.from_pretrained(MODEL)
plan = sc.elder(model, tokenizer, calibration, drop=DROP, **SETTINGS)
print(f"layers {plan.dropped} are gone, {model.config.num_hidden_layers} are left")

# %% [markdown]
"""
## What the preparation was worth

`bypass` runs the dense model as if those layers were not there: the same cut without any preparation.
"""

# %%
with sc.Decoder(dense).bypass(plan.dropped):
    found["cut, not prepared"] = sc.perplexity(dense, held_out)
found["ELDeR"] = sc.perplexity(model, held_out)
for name, result in found.items():
    print(f"{name:>17}: perplexity {result.perplexity:6.2f} ± {result.perplexity * result.stderr:.2f}")

# %% [markdown]
"""
## Which layers matter

The weight of each layer at the end of the choice, and on the way there. Where several layers are close, the loss
itself decides among them (`shortlist`); those that went then have the weight 0.
"""

# %%
OUT.mkdir(exist_ok=True)
figure, (ends, way) = plt.subplots(2, figsize=(9, 5), sharex=True, layout="constrained")
ends.bar(range(plan.num_layers), plan.scores, color="#1a6b3c")
for layer in plan.dropped:
    ends.axvspan(layer - 0.5, layer + 0.5, color="#b3261e", alpha=0.2)
ends.set(ylabel="weight", title="Weights of the layers; those on red were removed")
way.imshow(plan.provenance["weights_by_round"], aspect="auto", cmap="Greens", vmin=0, vmax=1)
way.set(xlabel="layer", ylabel="step")
figure.savefig(OUT / "weights.png")

# %% [markdown]
"""
## What they write
"""

# %%
for name, each in {"dense": dense, "ELDeR": model}.items():
    written = each.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=30, do_sample=False)
    print(f"{name:>6}: {tokenizer.decode(written[0], skip_special_tokens=True)}")

# %% [markdown]
"""
## Keep it

The result is an ordinary checkpoint. `sc.prune` and `secateur prune` do all of this at once, from directory to
directory, and also prove what they write, measure its speed, and leave a report.
"""

# %%
model.save_pretrained(OUT)
tokenizer.save_pretrained(OUT)
plan.save(OUT / "plan.json")
print(f"the pruned model is in {OUT}")

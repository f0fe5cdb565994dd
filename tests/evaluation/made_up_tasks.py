"""Small tasks, and what a model must be like after it did one."""

import torch

from secateur.data.examples import Example, Examples


def example(options, label=0):
    return Example(options=tuple(options), label=label)


def task(items, kind="choice"):
    return Examples(items=tuple(items), kind=kind, spec="made up")


COMPLETIONS = task(
    tuple(
        example(((prompt, completion),))
        for prompt, completion in [("One", " two"), ("Red", " is a colour"), ("x", "y")]
    ),
    "completion",
)


def state(model):
    return (
        [part.training for part in model.modules()],
        model.generation_config.to_dict(),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )

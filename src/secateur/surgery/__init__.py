"""Changing models: the configuration, live modules, closed-form merges, checkpoints and their proof."""

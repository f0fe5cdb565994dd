"""Telling people what happened: the run's record, the terminal, the model card."""

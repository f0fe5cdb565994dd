"""What a run will take, from the configuration of the model alone: memory, operations and time, phase by phase."""

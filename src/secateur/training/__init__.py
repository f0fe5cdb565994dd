"""Training on `transformers.Trainer`: towards a removal, with everything the Trainer offers."""

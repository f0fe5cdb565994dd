"""Measuring models: perplexity, speed, memory, and what they write."""

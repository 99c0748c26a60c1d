"""A training run as one page: its settings, data, curves, metrics and pictures."""

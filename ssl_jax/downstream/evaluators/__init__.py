"""Evaluators of a trained encoder, each called as `evaluator(encoder, data)`."""

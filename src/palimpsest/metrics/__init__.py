"""Scores of a model. Nothing here knows an editor."""

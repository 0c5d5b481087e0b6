"""Denoisers and classifiers: what loads them, and what they are."""

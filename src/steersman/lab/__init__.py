"""Runs, measurements, searches and trainings, which the commands carry out."""

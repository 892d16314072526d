"""Trains teacher and arms of an experiment over seeds, evaluates all in one process, and reports.

Imports the rooms up to training.
"""

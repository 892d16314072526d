"""Chains of teacher assistants: each stage is a training under the model before it.

Imports the rooms up to training.
"""

"""The stages of prune.py: sparse training, the cut, fine-tuning, distillation, report.

Imports the rooms up to training.
"""

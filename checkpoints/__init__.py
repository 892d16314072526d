"""Reads and writes .pt files: the only place that does.

Imports models and utils.
"""

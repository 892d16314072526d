"""Detectors from architecture yaml files in upstream's format.

Imports utils.
"""

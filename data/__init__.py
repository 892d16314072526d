"""Data sets in YOLO format: reading, checking, augmenting, converting, and the built-in rendered set.

Imports utils.
"""

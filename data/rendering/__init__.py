"""Draws the pictures of the built-in data set.

Imports utils.
"""

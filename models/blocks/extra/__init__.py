"""Blocks that no shipped architecture uses, for yaml files of one's own; table.py names them.

Imports the blocks beside this folder and models.fuse.
"""

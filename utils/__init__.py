"""Leaves that everything may use: boxes, NMS, metrics, plots, paths, devices, messages.

Imports nothing of ours but itself.
"""

"""Reads and writes the files of YOLOv5, YOLOv7 and ultralytics.

Imports the pickled room, models and utils.
"""

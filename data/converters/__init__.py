"""Readers of VOC and COCO annotations, and the writer of YOLO label files, for `python -m data.convert`.

Imports the rest of data and utils.
"""

"""Average precision as COCO and the families compute it, and the confusion matrix.

Imports utils.
"""

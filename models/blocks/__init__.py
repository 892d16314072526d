"""The blocks of the shipped architectures, one family a file.

Imports models.fuse and utils.
"""

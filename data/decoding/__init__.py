"""From the bytes of an image file to pixels, with every check and cache on the way.

Imports data.records and utils.
"""

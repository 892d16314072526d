"""What happens to a training image: mosaics, geometry, colors, pasted objects.

Imports data.records and utils.
"""

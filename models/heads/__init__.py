"""Detection heads, one a file.

Imports blocks and utils.
"""

"""How a command runs and ends: flags, errors as one line, signals, child processes, folders that it owns.

Imports utils.
"""

"""One training, from options to a finished run folder; the loop knows nothing of distillation.

Imports config, runfolder, inference and distilling; loop.py not the last.
"""

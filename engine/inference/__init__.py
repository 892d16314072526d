"""Uses a model: evaluation, detection, their files, and the runtimes of exported models.

Imports engine.config and engine.runfolder.
"""

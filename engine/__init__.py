"""Trains, evaluates, exports, prunes and compares: the rooms below, each of which imports only rooms before it.

Imports checkpoints, models, losses, data, distill, pruning and utils.
"""

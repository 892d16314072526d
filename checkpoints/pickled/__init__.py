"""Reads untrusted pickles without executing anything in them; README.md states the threat model.

Imports utils.
"""

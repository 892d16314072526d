"""Fuzzes the readers of files that come from elsewhere; see docs/fuzzing.md."""

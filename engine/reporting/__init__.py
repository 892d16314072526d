"""What reports are made of: statistics, charts, pictures, pages in HTML; and the report of a single run.

Imports the rooms up to inference.
"""

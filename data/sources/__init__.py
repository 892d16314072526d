"""Frames to detect on: files, folders, videos, cameras and network streams.

Imports data.images, data.decode and utils.
"""

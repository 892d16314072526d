"""Writes a model as ONNX, TorchScript, OpenVINO or a file for upstream, and checks it against PyTorch.

Imports the rooms up to training.
"""

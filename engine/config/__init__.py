"""Options, hyper-parameters and recipes, and the flags that set them; free of torch.

Imports no other room of engine.
"""

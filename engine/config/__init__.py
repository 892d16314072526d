"""Options, hyper-parameters and recipes, and the flags that set them; free of torch, but for
`defaults`, which looks at the student.

Imports no other room of engine.
"""

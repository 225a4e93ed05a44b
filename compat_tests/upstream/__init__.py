"""Modules that execute installed upstream test code with its imports redirected to scaleout.

Nothing upstream is copied here. Workers unpickle test functions by the names of these modules, so they must be
importable wherever a worker runs.
"""

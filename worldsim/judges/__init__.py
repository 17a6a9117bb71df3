"""Judges: whether imagined frames show a task done. Each file holds one, a pure function of pictures.

A judge is a class without arguments whose instances are called with the frames so far (uint8 ``[T, H, W, 3]``, recorded ones
first) and the last frame of the recorded episode in which the dream began (uint8 ``[H, W, 3]``), and answer True or False.
"""

"""Optimizers, one file each: a scalar update function, its slots, its per-step scalars, and learning rate schedules.

They promise the numbers of the references that they name, element by element. They know neither vectors nor devices.
"""

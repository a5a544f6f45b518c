"""Optimizers, one file each: a scalar update function, its slots and its per-step scalars."""

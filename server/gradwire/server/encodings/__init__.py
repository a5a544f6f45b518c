"""How numbers travel: bytes of a slice -> gradients, and parameters -> bytes of a message, one pair for each stream.

It promises that decoding what was encoded gives the nearest numbers that the encoding has, with INT8 answers as
differences from what the worker holds. Nothing else in the server knows what a number looks like on the wire.
"""

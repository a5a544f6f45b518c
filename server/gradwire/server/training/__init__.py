"""One worker's stream, from the slices of a block as they arrive to the answer and its receipt.

It promises that a block is applied whole, in order and once, and that its sender learns which it was: computed while it
arrives where that is faster, from a second state that nobody else sees, and committed by `durability.changes` alone.
"""

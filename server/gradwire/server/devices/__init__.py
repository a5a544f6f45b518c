"""Devices own flat vectors and run the optimizers' scalar functions over them.

They promise that a block of K steps has the bits of K single steps, that a sum has the same bits however the wire was
cut, and that an optimizer's one function is what all of them run. They know neither runs nor blocks.
"""

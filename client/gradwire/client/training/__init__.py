"""A worker's steps: its attachment to a run, the blocks that it sends, and the parameters that come back.

Promises that each block takes effect exactly once, however often it has to be sent, and that Ctrl-C may come anywhere.
"""

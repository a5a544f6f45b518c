"""Runs by name: created, listed, deleted, copied, put back, read and written whole, as a file or through a call.

It promises that a run is seen whole or not at all, that the same request makes it once, and that new values are put in
place as one step would be: all of them or none, safe on disk first where the run is stored.
"""

"""``gradwire doctor``: measures a server and the way to it, through the public contract and in temporary runs.

Promises that the server has no run more afterwards than before, whatever ends it. ``python -m gradwire.client.doctor``.
"""

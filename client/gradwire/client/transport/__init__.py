"""How bytes reach a server: channels, the stream of steps, memory shared with it, a server of one's own, retries.

Promises that Ctrl-C harms no connection: gRPC runs in threads that are not the caller's. Knows nothing of optimizers.
"""

"""The memory of the server: one bound for all that clients can make it hold, and what it shares with them.

It promises that bytes are counted before they are allocated and given back when they are freed, and that a client which
shares memory can spoil its own values there, but never take the memory away or change what has been checked.
"""

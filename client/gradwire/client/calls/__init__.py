"""The calls that concern a whole run rather than one step: its values and state, its making, snapshots, forks, files.

Promises that a call which is tried again takes effect once. A new RPC has its place here.
"""

"""What a user calls the optimizers: presets, whose numbers the server computes with.

A preset is a message of the contract in the making. It checks types and words; ranges are for the server to refuse.
"""

"""What values look like on the wire: named arrays as one flat vector, its slices, and their bytes.

Promises that a block which is sent again is sent with the same bytes. Knows the contract's messages, but no connection.
"""

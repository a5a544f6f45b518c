"""What the server counts of itself: plain numbers, read when somebody asks.

It promises that counting costs a step next to nothing, and that no number is about one run, worker or token.
"""

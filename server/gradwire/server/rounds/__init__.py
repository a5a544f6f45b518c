"""Many workers on one run: their contributions, the rounds that these make, and what each of them is answered.

It promises that each contribution has exactly one outcome, that its sender is told which, and that a round's numbers do
not depend on who came first. It does not know gRPC.
"""

"""What outlives the server: runs, their snapshots, and the journal of the blocks applied since, as bytes.

It promises that what it has said is stored is on the disk, in order and unchanged, or that the damage is noticed: each
row of the journal is chained to the one before by a hash. It knows neither devices nor optimizers.
"""

"""What outlives the server: runs, their snapshots, and the journal of the blocks applied since."""

"""Messages that nobody planned for: made from the contract's descriptors, seeded, to be replayed by their number."""

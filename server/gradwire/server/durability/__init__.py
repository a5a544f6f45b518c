"""What of a run is safe, and when: journaled before it is acknowledged, saved now and then, brought back at the start.

It promises that nothing acknowledged of a run with durability JOURNAL is lost, that no run comes back torn, and that
what is lost of others, or damaged, is said. It does not know how a `store` keeps its bytes.
"""

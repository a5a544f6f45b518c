"""Series of scalars: what a run's loss was, step by step, kept in bounded room however long the run is.

A value belongs to the block that brought it. It has no part in what the run computes, nor in its digest.
"""

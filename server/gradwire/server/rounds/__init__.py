"""Rounds of many workers: what becomes of their contributions.

They promise that what a round applies depends on the contributions and their workers' ids alone, not on who came first.
"""

"""Many workers on one run: how a user says how they work together, and who a worker is.

Knows neither connections nor blocks: what a contribution is, and how it is delivered, is for `training` to say.
"""

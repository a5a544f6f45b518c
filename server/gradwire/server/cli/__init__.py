"""The command line: ``gradwire serve``, ``health``, ``doctor`` and ``runs``.

It promises that flags win over ``GRADWIRE_*``, which win over the defaults, and that a health check imports neither
numpy nor protobuf.
"""

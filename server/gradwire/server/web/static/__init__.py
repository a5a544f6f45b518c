"""What browsers load of the page: HTML, style and scripts as they are, without a build. No Python.

``uPlot.*`` is uPlot 1.6.32 as its package on npm has it (``dist/``), under the MIT licence in ``uPlot.LICENSE.txt``.
"""

"""The server's other door: HTTP, for those who watch it.

It promises that nobody comes in here who could not call the service, that whoever watches keeps no step waiting, that
what it shows of runs is what the caller may see, and that nothing can be changed from here.
"""

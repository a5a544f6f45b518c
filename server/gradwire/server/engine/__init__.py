"""What a run is, and the rules by which one block after another is applied to it.

It promises whole steps: a block is checked in all that can be said against it before anything changes, and then applied
to every present element or, if the device fails, to a run that is ended. It knows no stream, no message and no disk:
whoever stores runs tells it what it must know in `engine.storage`.
"""

"""All that knows gRPC: a call is decoded, asked of the domain once, and its answer encoded.

It promises that nothing but the messages of ``gradwire.v1`` goes out, that every refusal is one of the table of errors
and says whether the step was applied, that nothing of a call is read before it is known who calls, and that no peer,
silent or gone, holds a call for ever. It decides nothing about runs.
"""

"""The contract as Python: what server and client both need to read and write the messages of ``gradwire.v1``."""

"""The wire contract: protobuf messages and gRPC stubs, generated from the ``.proto`` files beside this one."""

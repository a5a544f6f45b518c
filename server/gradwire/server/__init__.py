"""The gradwire server: runs, optimizers, devices and the gRPC service over them."""

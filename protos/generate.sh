#!/usr/bin/env bash
# Writes the Python code of the contract below OUT (default: beside the .proto files).
# It runs in an environment of its own with the OLDEST generator that we support (see Makefile): generated code refuses
# runtimes older than its generator, so an old generator keeps the client installable beside other people's pins.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-../.venv-stubs/bin/python}
out=${1:-.}
PATH="$(cd "$(dirname "$python")" && pwd):$PATH"
python -m grpc_tools.protoc --proto_path=. \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  gradwire/v1/run.proto gradwire/v1/train.proto gradwire/v1/service.proto
# The generator writes an empty service module for each file without a service.
rm -f "$out"/gradwire/v1/{run,train}_pb2_grpc.py "$out"/gradwire/v1/{run,train}_pb2_grpc.pyi

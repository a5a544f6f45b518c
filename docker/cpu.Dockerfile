# The CPU server: no torch. From the repository root:
#   docker build -f docker/cpu.Dockerfile -t gradwire:0.1.0-cpu .
# Run as it is, it serves loopback INSIDE the container only, and keeps runs in memory; compose.yaml says what is
# published, what is kept, and how.

# The newest Python that all wheels of the server are there for. A tag moves; for a build that can be repeated put the
# digest that `docker buildx imagetools inspect` names after it: --build-arg PYTHON_IMAGE=...@sha256:...
# (None stands here, because this file was tried where no registry of images can be reached.)
ARG PYTHON_IMAGE=docker.io/library/python:3.14-slim-trixie
FROM ${PYTHON_IMAGE} AS base


FROM base AS build
WORKDIR /src
# /opt/build holds pip and stays behind; /opt/gradwire is what ships.
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/gradwire
# The dependencies form a layer of their own, which a change of the sources leaves alone; their own tests stay behind.
# Their bytecode holds whatever happens to the times of files, as copies between stages and layers may change those: the
# user of the image cannot write it anew, and each start, each health check too, would compile all that it imports.
# (What does not compile is made for another Python, and never imported.)
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN python3 requirements.py server > requirements.txt \
 && /opt/build/bin/pip --python /opt/gradwire/bin/python install \
      --no-cache-dir --no-compile --only-binary :all: --constraint constraints.txt --requirement requirements.txt \
 && cd /opt/gradwire/lib/python3*/site-packages \
 && find numpy numba llvmlite -type d -name tests -prune -exec rm -r {} + \
 && { python3 -m compileall -q --invalidation-mode unchecked-hash . || true; }
COPY README.md LICENSE ./
COPY protos protos
COPY server server
COPY client client
RUN /opt/build/bin/pip --python /opt/gradwire/bin/python install \
      --no-cache-dir --no-compile --no-deps --prefix /opt/package . \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/package


FROM base
ARG PYTHON_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gradwire" \
      org.opencontainers.image.description="A remote optimizer: stream gradients over gRPC, get updated parameters back." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
# A new named volume takes over owner and mode of the folder that it is mounted on; without them the server could not
# write there.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gradwire \
 && install --directory --owner gradwire --group gradwire --mode 0700 /var/lib/gradwire /var/cache/gradwire
COPY --from=build /opt/gradwire /opt/gradwire
COPY --from=build /opt/package /opt/gradwire
# Compiled kernels are kept in the cache directory, and runs in /var/lib/gradwire where --data-dir says so. The server
# writes to no other place; without --data-dir an import passes through /tmp.
ENV PATH=/opt/gradwire/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GRADWIRE_DEVICE=cpu \
    GRADWIRE_CACHE_DIR=/var/cache/gradwire
USER 10001:10001
EXPOSE 50051 9464
# It drains: what has arrived whole is finished first.
STOPSIGNAL SIGTERM
# Here, and not in compose.yaml, so that it is said once. The first answer is found within a second, later ones are
# asked for seldom.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --start-interval=1s --retries=3 \
  CMD ["gradwire", "health", "--target", "127.0.0.1:50051"]
ENTRYPOINT ["gradwire"]
CMD ["serve"]

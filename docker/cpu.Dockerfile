# The CPU server: no torch. From the repository root:
#   docker build -f docker/cpu.Dockerfile -t gradwire:cpu .
# Run as it is, it serves loopback INSIDE the container only; compose.yaml says what is published, and how.

FROM docker.io/library/python:3.11-slim-bookworm AS base


FROM base AS build
WORKDIR /src
# /opt/build holds pip and stays behind; /opt/gradwire is what ships.
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/gradwire
# The dependencies form a layer of their own, which a change of the sources leaves alone.
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN python3 requirements.py server > requirements.txt \
 && /opt/build/bin/pip --python /opt/gradwire/bin/python install \
      --no-cache-dir --only-binary :all: --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY protos protos
COPY server server
COPY client client
RUN /opt/build/bin/pip --python /opt/gradwire/bin/python install \
      --no-cache-dir --no-deps --prefix /opt/package .


FROM base
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gradwire \
 && install --directory --owner gradwire --group gradwire --mode 0700 /var/cache/gradwire
COPY --from=build /opt/gradwire /opt/gradwire
COPY --from=build /opt/package /opt/gradwire
# Compiled kernels are kept in the cache directory, the only place that the server writes to.
ENV PATH=/opt/gradwire/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GRADWIRE_DEVICE=cpu \
    GRADWIRE_CACHE_DIR=/var/cache/gradwire
USER 10001:10001
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["gradwire", "health", "--target", "127.0.0.1:50051"]
ENTRYPOINT ["gradwire"]
CMD ["serve"]

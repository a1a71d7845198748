# syntax=docker/dockerfile:1
# One image for every part of a fleet: `api`, `worker`, `migrate` and all other commands of `hyperdial`.
#
#   docker build -t hyperdial:local .                                  PyTorch for the CPU
#   docker build -t hyperdial:local --build-arg TORCH_INDEX=default .  PyTorch's default wheel, which has CUDA

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/hyperdial/bin:$PATH
RUN python -m venv /opt/hyperdial
WORKDIR /source
COPY constraints.txt ./
# PyTorch alone first: it is by far the largest, and changes seldom.
RUN --mount=type=cache,target=/root/.cache/pip \
    torch="torch==$(sed -n 's/^torch==//p' constraints.txt)" \
    && if [ "$TORCH_INDEX" = default ]; then pip install -c constraints.txt "$torch"; \
       else pip install --no-deps --index-url "$TORCH_INDEX" "$torch"; fi
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY workers workers
COPY migrations migrations
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt '.[worker,embedded,postgres]'

FROM python:${PYTHON}-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin hyperdial \
    && install -d -o hyperdial -g hyperdial -m 0750 /var/lib/hyperdial
COPY --from=build /opt/hyperdial /opt/hyperdial
ENV PATH=/opt/hyperdial/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HYPERDIAL_DATA_DIR=/var/lib/hyperdial
USER 10001:10001
WORKDIR /var/lib/hyperdial
VOLUME /var/lib/hyperdial
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["hyperdial"]
CMD ["api"]

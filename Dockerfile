# The image of all five services and of the command line: `tallybus serve STAGE`.
#
# Three stages of one base: dependencies and the package are installed into an environment of their own; then a
# ledger runs in it for a moment, which leaves the machine code of the kernels behind; the last stage takes both
# over, and nothing else. So a start compiles nothing, and the root file system can be read-only.
#
# Machine code is for the kind of CPU that it was made on: build the image on the kind of machine that runs it.
# Elsewhere each start compiles anew, which takes some seconds; nothing else changes.
#
# Behind a proxy or a mirror, hand pip's settings in as secrets, which no layer keeps:
#   docker build --secret id=pip_conf,src=pip.conf --secret id=pip_cert,src=ca.crt .
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/tallybus
COPY pyproject.toml ./
# Dependencies alone first: a change of the code does not install them again.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=pip_cert \
    if [ -e /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi; \
    if [ -e /run/secrets/pip_cert ]; then export PIP_CERT=/run/secrets/pip_cert; fi; \
    python3 -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
print(*p["build-system"]["requires"], *p["project"]["dependencies"], \
*p["project"]["optional-dependencies"]["server"], sep="\n")' > /tmp/requirements.txt \
    && /opt/tallybus/bin/pip install --quiet -r /tmp/requirements.txt
COPY README.md LICENSE ./
COPY common common
COPY services services
COPY tallybus tallybus
RUN /opt/tallybus/bin/pip install --quiet --no-deps --no-build-isolation --no-index . \
    && /opt/tallybus/bin/pip uninstall --quiet --yes hatchling trove-classifiers pluggy pathspec

FROM build AS kernels
ENV NUMBA_CACHE_DIR=/opt/tallybus/kernels PATH=/opt/tallybus/bin:$PATH
COPY deploy/compose/warm /usr/local/bin/warm
# Written for their owner alone; the services run as another user.
RUN warm && chmod -R a+rX /opt/tallybus/kernels

FROM ${BASE}
RUN groupadd --gid 10001 tallybus \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin tallybus \
    && install -d -m 0700 -o 10001 -g 10001 /data /run/tallybus /keys /compiled
COPY --from=build /opt/tallybus /opt/tallybus
COPY --from=kernels /opt/tallybus/kernels /opt/tallybus/kernels
ENV PATH=/opt/tallybus/bin:$PATH \
    NUMBA_CACHE_DIR=/opt/tallybus/kernels \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    TALLYBUS_LEDGER_DATA=/data \
    TALLYBUS_BUS_RUN_FOLDER=/run/tallybus
WORKDIR /data
USER 10001:10001
ENTRYPOINT ["tallybus"]

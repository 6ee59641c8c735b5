# Your environment to work in: your code comes from a folder of your machine, and uv is there to try packages out.
#
#     docker run -it --rm -v "$PWD:/code" IMAGE bash
#
# What you mount on /code comes before the copy of your code that is in the image.
#
# Built from a folder that `envsync build FOLDER` makes: it holds the locked wheels and a uv, so that nothing here
# asks an index or needs a secret. `envsync build` also fills in the arguments below and takes out --mount where
# there is no BuildKit; keep their lines, and change the rest as you like.

# With or without a Python: where it has none that fits, the one in the folder is used.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
USER root
COPY install/ /tmp/envsync/
# Makes /opt/envsync/env, and fails unless all that is in it is what the lock says.
RUN --mount=type=cache,target=/var/cache/envsync sh /tmp/envsync/install.sh

FROM ${BASE}
USER root
# Debian's or Ubuntu's packages; nothing is installed if it is empty.
ARG PACKAGES="git less"
RUN [ -z "${PACKAGES}" ] || { apt-get update \
    && apt-get install -y --no-install-recommends ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/*; }
COPY --from=build /tmp/envsync/uv /usr/local/bin/uv
COPY --from=build /opt/envsync/ /opt/envsync/
# The lock and your local code: the last layer, and the only one that an edit changes.
COPY image/ /opt/envsync/

# What the environment is called, and which source trees come before and after its packages.
ARG LOCK=
ARG TREES=
ARG FRONT=
ARG BACK=
ARG BASE_NAME=
ARG BASE_DIGEST=
LABEL org.envsync.lock="${LOCK}" \
      org.envsync.trees="${TREES}" \
      org.opencontainers.image.base.name="${BASE_NAME}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      org.opencontainers.image.created="1980-01-02T00:00:00Z"
ENV PATH="/opt/envsync/env/bin:${PATH}" \
    PYTHONPATH="/code${FRONT:+:}${FRONT}" \
    PYTHONHOME="" \
    ENVSYNC_TREES="${BACK}" \
    VIRTUAL_ENV="/opt/envsync/env" \
    PYTHONDONTWRITEBYTECODE="1"
WORKDIR /code
CMD ["python"]

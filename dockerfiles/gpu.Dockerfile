# Your environment, and your local code, on top of CUDA's libraries.
#
# A wheel that brings its own CUDA (torch's does) needs only the driver, which the machine lends to the container
# (docker run --gpus all): take base.Dockerfile then, it is smaller. This one is for packages that expect CUDA of
# the system (cupy-cuda12x without its wheels, jax's -local builds, your own kernels).
#
# Built from a folder that `envsync build FOLDER` makes: it holds the locked wheels and a uv, so that nothing here
# asks an index or needs a secret. `envsync build` also fills in the arguments below and takes out --mount where
# there is no BuildKit; keep their lines, and change the rest as you like.

# -base: the runtime alone; -runtime: cuBLAS, NCCL and others too; -cudnn-runtime: and cuDNN; -devel: compilers.
# None has a Python: the one in the folder is used. Its version has to be one that your driver runs (nvidia-smi).
ARG BASE=nvidia/cuda:12.6.3-runtime-ubuntu24.04

FROM ${BASE} AS build
USER root
COPY install/ /tmp/envsync/
# Makes /opt/envsync/env, and fails unless all that is in it is what the lock says.
RUN --mount=type=cache,target=/var/cache/envsync sh /tmp/envsync/install.sh

FROM ${BASE}
# System packages that your code needs go here, above what changes more often.
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
    PYTHONPATH="${FRONT}" \
    PYTHONHOME="" \
    ENVSYNC_TREES="${BACK}" \
    NVIDIA_VISIBLE_DEVICES="all" \
    NVIDIA_DRIVER_CAPABILITIES="compute,utility"
CMD ["python"]

ARG OWNER=jupyter
ARG BASE_IMAGE=$OWNER/base-notebook:2024
FROM $BASE_IMAGE
LABEL maintainer="Project <project@example.com>"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG NB_UID="1000"
ARG NB_USER="jovyan"
USER root
RUN mamba install --yes 'numpy' 'pandas' && \
    fix-permissions "/home/${NB_USER}"
USER ${NB_UID}
WORKDIR "/home/${NB_USER}"
EXPOSE 8888
HEALTHCHECK --interval=3s --timeout=1s --start-period=3s --retries=3 \
    CMD /etc/jupyter/docker_healthcheck.py || exit 1

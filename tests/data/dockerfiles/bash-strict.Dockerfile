FROM debian:bookworm-slim
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN for f in a b c; do \
      echo "$f" | tee "/tmp/$f"; \
    done; \
    if [[ -f /tmp/a ]]; then \
      cat /tmp/{a,b,c} > /tmp/all; \
    fi
SHELL ["/bin/sh", "-c"]
CMD cat /tmp/all

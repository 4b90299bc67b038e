# syntax=docker/dockerfile:1
FROM debian:bookworm-slim
RUN <<EOF
set -e
apt-get update
apt-get install -y --no-install-recommends curl
rm -rf /var/lib/apt/lists/*
EOF
RUN <<'PY' python3 -
print("$HOME is not expanded")
PY
RUN <<-"TABS"
	echo one
		echo two
	TABS
RUN <<SCRIPT
#!/usr/bin/env bash
echo "with ${BASH_VERSION}"
SCRIPT

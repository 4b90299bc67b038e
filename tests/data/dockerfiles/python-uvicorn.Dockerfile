FROM python:3.11-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VIRTUAL_ENV=/opt/venv
ENV PATH="$VIRTUAL_ENV/bin:$PATH"

FROM base AS deps
RUN python -m venv $VIRTUAL_ENV
COPY requirements.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -r /tmp/requirements.txt

FROM base
COPY --from=deps $VIRTUAL_ENV $VIRTUAL_ENV
RUN useradd --create-home --uid 10001 app
USER app
WORKDIR /home/app
COPY --chown=app:app src/ ./src/
EXPOSE 8000
STOPSIGNAL SIGINT
CMD ["uvicorn", "src.main:app", "--host", "0.0.0.0"]

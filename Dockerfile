# One image for every role: `stillhouse serve`, `stillhouse controller`, `stillhouse up`, and the nodes of a Ray cluster.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/stillhouse && /opt/stillhouse/bin/pip install --no-cache-dir '.[postgres,demo,weights,s3,ray]'

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 stillhouse && install -d -o stillhouse /var/lib/stillhouse
COPY --from=build /opt/stillhouse /opt/stillhouse
ENV PATH=/opt/stillhouse/bin:$PATH STILLHOUSE_HOME=/var/lib/stillhouse PYTHONUNBUFFERED=1
USER stillhouse
VOLUME /var/lib/stillhouse
EXPOSE 8000
ENTRYPOINT ["stillhouse"]
CMD ["up"]

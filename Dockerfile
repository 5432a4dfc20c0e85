# The studio on the embedded base, from the wheel: `python -m build --wheel`, then `docker build --tag hra-studio .`.
FROM python:3.11-slim-bookworm

# Libraries of OpenCV are in its headless package: nothing else is needed from the system.
RUN useradd --create-home --uid 1000 studio && mkdir /data && chown studio /data
WORKDIR /data
COPY dist/*.whl /tmp/
# torch for a GPU: build with --build-arg TORCH="torch==2.13.0 --index-url …" of pytorch.org.
ARG TORCH="torch==2.13.0"
# hadolint ignore=DL3013,SC2086
RUN pip install --no-cache-dir ${TORCH} \
    && pip install --no-cache-dir "$(echo /tmp/*.whl)[studio]" \
    && rm -f /tmp/*.whl

USER 1000
ENV HF_HOME=/data/huggingface
VOLUME /data
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/')"]
ENTRYPOINT ["hra-diffusion", "studio", "--host", "0.0.0.0", "--port", "7860", "--folder", "/data/studio"]

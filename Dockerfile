# docker build -t convscope .                            the service on the CPU: no torch
# docker build -t convscope-cuda --target serve-cuda .   the service on an NVIDIA GPU
# docker build -t convscope-train --target train .       convscope-train
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# One requirements file for each set of dependencies: an edit elsewhere in pyproject.toml leaves
# the layers that install them cached.
FROM ${BASE_IMAGE} AS requirements
WORKDIR /requirements
COPY pyproject.toml ./
RUN python -c "import pathlib, tomllib; \
    project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
    groups = {'serve': project['dependencies'], **project['optional-dependencies']}; \
    [pathlib.Path(f'{name}.txt').write_text('\n'.join(lines)) for name, lines in groups.items()]"

FROM ${BASE_IMAGE} AS dependencies
# mahotas has no wheel for arm64: pip compiles it there.
# hadolint ignore=DL3008
RUN test "$(uname -m)" = x86_64 || { apt-get update \
    && apt-get install --yes --no-install-recommends g++; }
RUN python -m venv --without-pip /opt/venv
COPY --from=requirements /requirements/serve.txt /requirements/segmentation.txt /requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir \
    -r /requirements/serve.txt -r /requirements/segmentation.txt

# The rest is never read by the service on the CPU: 90 MB of files.
FROM dependencies AS dependencies-serve
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends binutils
WORKDIR /opt/venv/lib
# 35 MB: onnxruntime a second time, for programs in C.
RUN rm python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*
# 13 MB: its tools for training and export, and the packages that only those import.
RUN rm -r python3*/site-packages/onnxruntime/quantization \
        python3*/site-packages/onnxruntime/tools \
        python3*/site-packages/onnxruntime/transformers \
    && pip --python /opt/venv/bin/python uninstall --yes flatbuffers packaging protobuf
# 25 MB: tests, bridges to compilers, and pictures. (mahotas imports its other tests.)
RUN rm -r python3*/site-packages/numpy/distutils python3*/site-packages/numpy/f2py \
        python3*/site-packages/numpy/_core/_simd.*.so \
        python3*/site-packages/mahotas/demos/data python3*/site-packages/mahotas/tests/data \
    && find python3*/site-packages/numpy -type d -name tests -prune -exec rm -r {} +
# 16 MB: what only a debugger reads.
RUN strip --strip-unneeded python3*/site-packages/uvloop/*.so \
    python3*/site-packages/PIL/*.so python3*/site-packages/httptools/parser/*.so

FROM dependencies AS dependencies-cuda
COPY --from=requirements /requirements/cuda.txt /requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir -r /requirements/cuda.txt

FROM dependencies AS dependencies-train
COPY --from=requirements /requirements/train.txt /requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir -r /requirements/train.txt

# Our own packages alone. Copied over the dependencies, they form a small layer, so a new version
# of the code is a small download.
FROM ${BASE_IMAGE} AS package
RUN python -m venv --without-pip /opt/venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY training training
# The default model of each task: 25 MB in place of the 180 MB of all.
COPY models_store/simple-cnn/3 models_store/simple-cnn/3
COPY models_store/unet-nuclei/1 models_store/unet-nuclei/1
COPY models_store/yolo-bccd/1 models_store/yolo-bccd/1
# The wheel carries its model for those who have nothing else; the image has it in /models.
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps . \
    && rm -r /opt/venv/lib/python3*/site-packages/models_store
# A checkout made under a strict umask would leave files that only root can read.
RUN mv models_store /models && chmod -R a+rX /models

FROM ${BASE_IMAGE} AS fribidi
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libfribidi0

FROM ${BASE_IMAGE} AS runtime
LABEL org.opencontainers.image.title="Convscope" \
    org.opencontainers.image.licenses="Apache-2.0 AND Bitstream-Vera"
RUN groupadd --gid 10001 convscope \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home convscope
# Pillow looks for it when it writes names from right to left in pictures.
COPY --from=fribidi /usr/lib/*/libfribidi.so.0 /usr/lib/
# pip compiled the modules at installation, and the root file system may be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

FROM runtime AS train
LABEL org.opencontainers.image.description="Trains image classifiers, detectors and segmenters."
COPY --from=dependencies-train /opt/venv /opt/venv
COPY --from=package /opt/venv /opt/venv
# Data, runs and models live in the folder mounted here; run as its owner (--user).
WORKDIR /work
RUN chown 10001:10001 /work
ENV HOME=/tmp
USER 10001:10001
ENTRYPOINT ["convscope-train"]
CMD ["--help"]

FROM runtime AS service
LABEL org.opencontainers.image.description="Serves image classifiers, detectors and segmenters."
ENV CONVSCOPE_STORE=/models \
    CONVSCOPE_LOG_FORMAT=json
WORKDIR /
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "app.server.probe"]
ENTRYPOINT ["convscope"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]

FROM service AS serve-cuda
COPY --from=dependencies-cuda /opt/venv /opt/venv
COPY --from=package /opt/venv /opt/venv
COPY --from=package /models /models
ENV CONVSCOPE_BACKEND=torch-cuda

FROM service AS serve
COPY --from=dependencies-serve /opt/venv /opt/venv
COPY --from=package /opt/venv /opt/venv
COPY --from=package /models /models

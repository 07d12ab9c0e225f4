# paramorph-rt on the CPU, with its model: no network, home or write access is needed to run it.
#
#   docker build -t paramorph-rt .
#   docker run --rm --network none --read-only --user "$(id -u):$(id -g)" \
#       --volume "$PWD:/data" --workdir /data paramorph-rt \
#       infer --moving moving.nii.gz --fixed fixed.nii.gz --out-dir OUT
#
# tests/clean_machine.sh takes the same steps in a minimal Debian.
# The whole image has the compiler that the refinement's passes need.
FROM python:3.12 AS build
COPY . /source
RUN python -m venv /opt/paramorph \
    && /opt/paramorph/bin/python -m pip install --no-cache-dir "/source[openvino]"

FROM python:3.12-slim
COPY --from=build /opt/paramorph /opt/paramorph
ENV PATH=/opt/paramorph/bin:$PATH
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["paramorph-rt"]
CMD ["--help"]

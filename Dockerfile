# nnunet_din with the versions in container/requirements.txt. How to run it: docs/container.md
#
#     docker build -t nnunet-din .
#
# torch's wheels bring CUDA's libraries; the base image brings what the NVIDIA container toolkit looks for.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# Without gcc and Python's headers torch.compile, which nnU-Net trains with on a GPU, cannot build its kernels.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# The versions first: a change of the code does not install 6 GB anew.
COPY container/requirements.txt /tmp/requirements.txt
RUN python3 -m venv /opt/nnunet-din \
    && /opt/nnunet-din/bin/pip install --no-cache-dir --no-deps -r /tmp/requirements.txt
ENV PATH=/opt/nnunet-din/bin:$PATH

COPY . /tmp/source
RUN pip install --no-cache-dir --no-deps /tmp/source && rm -rf /tmp/source && pip check

# Whatever user runs it (docker run --user) can write here: caches of torch.compile, matplotlib and timm.
ENV HOME=/home/nnunet \
    nnUNet_raw=/data/nnUNet_raw \
    nnUNet_preprocessed=/data/nnUNet_preprocessed \
    nnUNet_results=/data/nnUNet_results
RUN mkdir -p /data "$HOME" && chmod 1777 /data "$HOME" \
    && groupadd --gid 10001 nnunet && useradd --uid 10001 --gid 10001 --no-create-home --home-dir "$HOME" nnunet
USER nnunet
WORKDIR /data

CMD ["nnunet-din", "doctor"]

# Train and evaluate on GPUs:
#
#     docker build -t fastalex .
#     docker run --rm --gpus all --ipc host -v "$PWD:/work" fastalex train photos --devices 0
#
# PyTorch's wheels bring CUDA; the host needs NVIDIA's driver and its container toolkit. Nobody has run it on a GPU yet.
FROM python:3.11-slim

# Triton and the CPU operators compile C when they first run.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/fastalex
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY kernels kernels
COPY dataloading dataloading
COPY fastalex fastalex
RUN pip install --no-cache-dir -c constraints.txt '.[cuda13,imagenet,report,tensorboard]'

WORKDIR /work
ENTRYPOINT ["fastalex"]

#!/bin/sh
# Triton over the model repository in /models: the TensorRT plan where there is one, else the ONNX file.
# Arguments are given to tritonserver, for instance TLS: --grpc-use-ssl=true --grpc-server-cert=... --grpc-server-key=...
set -eu
repository=${MODELS:-/models}
version=$(ls "$repository/upsnet" | grep -E '^[0-9]+$' | sort -n | tail -n 1)
model=$repository/upsnet/$version

# Nobody may manage the server from outside: models are loaded once, and the calls that could change something, or read
# the memory of others, want a secret that is forgotten here.
closed=model-repository,shared-memory,statistics,trace,logging
secret=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')

if [ -f "$model/model.plan" ]; then
    set -- "--backend-config=tensorrt,plugins=$model/libupsnet_plugins.so" "$@"
else
    set -- --model-config-name=cpu "$@"
fi
exec tritonserver \
    --model-repository="$repository" \
    --model-control-mode=none \
    --disable-auto-complete-config \
    --http-restricted-api="$closed:upsnet-secret=$secret" \
    --grpc-restricted-protocol="$closed:upsnet-secret=$secret" \
    --exit-timeout-secs=25 \
    "$@"

#!/bin/sh
# Triton over the model repository in /models: the TensorRT plan where there is one, else the ONNX file.
# Arguments are given to tritonserver, for instance TLS: --grpc-use-ssl=true --grpc-server-cert=... --grpc-server-key=...
# ROLE=candidate: not the version in service but the one that `upsnet deploy stage` has put beside it, alone.
# CONTROL_SECRET_FILE=...: whoever knows the secret in that file may load models, and so run code in the server. It is
# for `upsnet deploy promote --server ... --secret-file ...`, which changes the version without a restart.
set -eu
repository=${MODELS:-/models}
role=${ROLE:-serving}
now=$repository/upsnet/rollouts/now
version=

fail() {
    echo "serve.sh: $*" >&2
    exit 1
}

case $role in
serving) plan_config='' onnx_config=cpu ;;
candidate) plan_config=candidate onnx_config=candidate_cpu ;;
*) fail "ROLE is '$role'; it is serving or candidate" ;;
esac
if [ -e "$now" ] && [ ! -L "$now" ]; then # nobody can tell any more which version serves
    fail "$repository has lost its links, as in a bucket or by \`cp -L\`: \`cp -a\` keeps them, and a repository that" \
        "\`upsnet deploy --run RUN --repository NEW\` makes has none"
fi
# What Triton's processes tell each other lies in /dev/shm, and what has grown there stays. Where it is full, requests for
# large photos fail from then on, while the probe's small one does not.
shared=$(df -Pk /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2)
[ "${shared:-0}" -ge 524288 ] || fail "/dev/shm has $((${shared:-0} / 1024)) MiB; give it 512 or more: --shm-size=4g," \
    "shm_size of Compose, an emptyDir of medium Memory in Kubernetes"
if [ -L "$now" ]; then # versions are rolled out step by step, and a link of the step says which one this is
    version=$(readlink "$now/$role" | sed -n 's|^../../\([0-9]*\)/configs$|\1|p')
elif [ "$role" = serving ]; then
    version=$(ls "$repository/upsnet" 2>/dev/null | grep -E '^[0-9]+$' | sort -n | tail -n 1)
fi
if [ -z "$version" ] && [ "$role" = candidate ]; then
    fail "$repository has no version to serve as candidate (\`upsnet deploy stage\` puts one there)"
fi
[ -n "$version" ] || fail "$repository is no model repository, or an empty mount; \`upsnet deploy --run RUN\` makes one"
model=$repository/upsnet/$version

# The calls that could change something, or read the memory of others, want a secret that is forgotten here.
closed=shared-memory,statistics,trace,logging
forgotten=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
if [ -n "${CONTROL_SECRET_FILE:-}" ]; then
    secret=$(cat "$CONTROL_SECRET_FILE") || fail "the secret cannot be read"
    [ -z "$(find -L "$CONTROL_SECRET_FILE" -perm /007)" ] || fail "$CONTROL_SECRET_FILE can be read by everybody; chmod 600"
    case $secret in
    *[!A-Za-z0-9_-]*) fail "$CONTROL_SECRET_FILE: letters, digits, - and _ alone; \`openssl rand -hex 32\` makes a secret" ;;
    esac
    [ ${#secret} -ge 32 ] || fail "$CONTROL_SECRET_FILE: fewer than 32 characters; \`openssl rand -hex 32\` makes a secret"
    set -- --model-control-mode=explicit --load-model=upsnet --load-model=upsnet_photo \
        "--http-restricted-api=model-repository:upsnet-control=$secret" \
        "--grpc-restricted-protocol=model-repository:upsnet-control=$secret" "$@"
else # nobody may manage the server: models are loaded once
    closed=model-repository,$closed
    set -- --model-control-mode=none "$@"
fi

if [ -f "$model/model.plan" ]; then
    set -- "--backend-config=tensorrt,plugins=$model/libupsnet_plugins.so" "$@"
    config=$plan_config
else
    config=$onnx_config
fi
# Every half a minute clients connect anew, and find another container when this one is about to stop: Triton refuses
# what comes after SIGTERM over connections that are still there.
exec tritonserver \
    --model-repository="$repository" \
    ${config:+"--model-config-name=$config"} \
    --disable-auto-complete-config \
    --http-restricted-api="$closed:upsnet-secret=$forgotten" \
    --grpc-restricted-protocol="$closed:upsnet-secret=$forgotten" \
    --exit-timeout-secs=25 \
    --grpc-max-connection-age=30000 \
    "$@"

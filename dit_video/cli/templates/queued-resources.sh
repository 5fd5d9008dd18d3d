#!/usr/bin/env bash
# @{slice}: @{chips} chips on @{hosts} host(s), as a queued resource of Cloud TPU. Written by
#   @{made_by}
# Run it where it may stay for as long as the training takes, in tmux for one: it asks for the slice, waits for it,
# starts every host, and when the slice is taken away asks again; what was trained goes on from its last checkpoint.
set -euo pipefail

name=@{name}
zone=@{zone}
outcome=@{run_url}/exit_code

tpus() { gcloud compute tpus "$@" --zone="$zone" @{project}; }
# What a failed question says about: GONE where there is no such request, else nobody knows (a network, a token).
state() {
  local said
  if said=$(tpus queued-resources describe "$name" --format='value(state.state)' 2>&1); then
    tail -n 1 <<<"$said"
  elif [[ $said == *NOT_FOUND* ]]; then
    echo GONE
  else
    echo UNKNOWN
  fi
}
code() { gcloud storage cat "$outcome" 2>/dev/null || true; }
release() { tpus queued-resources delete "$name" --force --quiet >/dev/null 2>&1 || true; }
say() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*" >&2; }
trap release EXIT

request=(
  queued-resources create "$name" --node-id="$name" --runtime-version=@{runtime}
  --accelerator-type=@{cloud_type}
  --type=@{cloud_name}
  --topology=@{topology}
  --reservation=@{reservation}
  @{spot}
)

# What every host runs. It may be called again while it runs: it looks for the container that it started.
worker=$(
  cat <<'WORKER'
set -euo pipefail
about() { curl -fsS -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
number=$(about agent-worker-number)
# Addresses of all hosts in the order of their numbers, each alone or as name:id:address.
IFS=, read -ra hosts <<<"$(about worker-network-endpoints)"
if ! sudo docker inspect train >/dev/null 2>&1; then
  mount_bucket() {
    sudo mkdir -p "$2"
    mountpoint -q "$2" || sudo gcsfuse -o allow_other --implicit-dirs --rename-dir-limit=200000 "$1" "$2"
  }
  mount_bucket @{buckets}
  sudo gcloud auth configure-docker @{registry} --quiet
  sudo docker run --detach --name train --privileged --net=host --ipc=host \
    --volume @{docker_mounts} \
    --env JAX_COORDINATOR_ADDRESS="${hosts[0]##*:}:8476" \
    --env JAX_NUM_PROCESSES="${#hosts[@]}" --env JAX_PROCESS_ID="$number" \
    @{image} @{command}
fi
if [[ $number == 0 ]]; then sudo docker logs --follow train & fi
code=$(sudo docker wait train)
if [[ $number == 0 ]]; then
  sudo mkdir -p @{run_path}
  echo "$code" | sudo tee @{run_path}/exit_code >/dev/null
fi
exit "$code"
WORKER
)

lost=0 # slices in a row on which nothing could be started
for ((try = 0; try <= @{max_restarts}; try++)); do
  gcloud storage rm "$outcome" --quiet >/dev/null 2>&1 || true
  say "asking for @{slice} (start $((try + 1)) of @{starts})"
  tpus "${request[@]}" >&2
  until [[ $(state) =~ ^(ACTIVE|FAILED|SUSPENDED|GONE)$ ]]; do sleep 30; done
  failed=0
  while ((failed < 20)) && now=$(state) && [[ $now =~ ^(ACTIVE|UNKNOWN)$ && -z $(code) ]]; do
    began=$SECONDS
    tpus tpu-vm ssh "$name" --worker=all --command="$worker" >&2 || true
    [[ -z $(code) ]] || break
    ((SECONDS - began < 3600)) || failed=0                   # it ran, and the connection broke
    if [[ $now == ACTIVE ]]; then failed=$((failed + 1)); fi # else the network here is away
    sleep 30
  done
  ended=$(code)
  release
  case ${ended:-75} in
    0 | 2 | 3 | 4 | 5) # done; bad input, what is missing, too little memory and numbers that are not finite stay so
      exit "$ended"
      ;;
  esac
  if [[ -z $ended && $failed == 20 ]]; then
    lost=$((lost + 1))
    say "20 times in a row ssh ended, and the run has left no exit code; what ssh said stands above"
    if ((lost == 2)); then
      say "on a second slice too: check the image, the rights to it and to the bucket. The slice is given back"
      exit 3
    fi
  else
    lost=0
    say "ended with ${ended:-no exit code: the slice was taken away}"
  fi
  until [[ $(state) == GONE ]]; do
    sleep 10
    release # what could not be deleted would cost money for ever
  done
done
exit 75

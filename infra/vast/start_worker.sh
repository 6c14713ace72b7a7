#!/usr/bin/env bash
# The entrypoint of a GPU host: runs `stillreel host` with the arguments given. Of a rented one it ends the
# rental when that ends, or at STILLREEL_RENTED_UNTIL (seconds since 1970) whatever it is doing; at Vast.ai
# (CONTAINER_ID) after four hours where that is not set; never later than STILLREEL_HOST_HOURS from now, for
# the clock of such a machine may be wrong. A host that is not rented has no timer.
# Needs bash, curl and date. At Vast.ai the machine's own key (CONTAINER_API_KEY) can do no more
# than stop and destroy this machine; elsewhere what started the container ends the machine.
set -u

readonly api="${VAST_URL:-https://console.vast.ai}"
readonly machine="${CONTAINER_ID:-}"
readonly key="${CONTAINER_API_KEY:-}"
hours="${STILLREEL_HOST_HOURS:-4}"
[[ "$hours" =~ ^[0-9]+(\.[0-9]+)?$ ]] || hours=4
longest=$((10#${hours%%.*} * 3600))
[[ "$hours" != *.* ]] || longest=$((longest + 3600))
readonly longest
unset CONTAINER_API_KEY  # nothing else here needs it

say() { echo "start_worker: $*" >&2; }

# call METHOD BODY: the status of a call about this machine. The key goes in on stdin, so that no
# process list shows it.
call() {
  curl --silent --output /dev/null --write-out '%{http_code}' --max-time 30 --request "$1" \
    --header 'Content-Type: application/json' --data "$2" --config - \
    "$api/api/v0/instances/$machine/" <<<"header = \"Authorization: Bearer $key\"" || true
}

# Never returns: a rental that goes on costs money, so it is tried for ever.
end_rental() {
  local wait=5 status
  while :; do
    status="$(call DELETE '{}')"
    say "asked for the end of machine $machine: $status"
    case "$status" in
      401 | 403) call PUT '{"state":"stopped"}' >/dev/null ;;
    esac
    sleep "$wait"
    wait=$((wait < 150 ? wait * 2 : 300))
  done
}

# The timer comes first, and needs nothing of stillreel.
until="${STILLREEL_RENTED_UNTIL:-0}" timer=''
if [[ -n "$machine" || "$until" != 0 ]]; then
  now="$(date +%s)"
  [[ "$until" =~ ^[0-9]+$ ]] || until=0
  ((until > 0 && until <= now + longest)) || until=$((now + longest))
  main=$$
  (
    while (($(date +%s) < until)); do sleep 5; done
    say "the time of this machine is over"
    if [[ -n "$machine" ]]; then end_rental; fi
    kill -TERM "$main"
    sleep 90
    kill -KILL "$main"
  ) &
  timer=$!
fi

as_user=()
if [[ -n "${STILLREEL_USER:-}" && "$(id -u)" == 0 ]]; then
  as_user=(setpriv --reuid "$STILLREEL_USER" --regid "$STILLREEL_USER" --clear-groups)
fi
child='' stopping=''
trap 'stopping=yes; [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null' TERM INT
"${as_user[@]}" stillreel host "$@" &
child=$!
[[ -z "$stopping" ]] || kill -TERM "$child"
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do  # a signal interrupts `wait`
  wait "$child"
  code=$?
done
say "stillreel host ended with $code"
if [[ -n "$machine" ]]; then end_rental; fi
[[ -z "$timer" ]] || kill "$timer" 2>/dev/null
exit "$code"

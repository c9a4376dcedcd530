#!/bin/sh
# Runs Mosquitto, and has it read its files again whenever the list of revoked certificates changes: for containers,
# where the fleet server writes the list into a shared folder and cannot send a signal.
set -eu
list="${1:-/mosquitto/config/revoked.crl}"
config="${2:-/mosquitto/config/mosquitto.conf}"

mosquitto -c "$config" &
broker=$!
trap 'kill -TERM "$broker" 2>/dev/null' TERM INT

seen=$(cksum "$list")
while kill -0 "$broker" 2>/dev/null; do
    sleep 1 &
    wait $! || true
    now=$(cksum "$list" 2>/dev/null || echo "$seen")
    if [ "$now" != "$seen" ]; then
        seen=$now
        kill -HUP "$broker"
    fi
done
wait "$broker"

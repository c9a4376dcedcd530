#!/bin/sh
# Installs the real servers and tools that the tests run against, with apt, where this user may.
# Where not, their tests skip and the closing summary says what was not verified.
set -u
export PATH="$PATH:/usr/sbin:/usr/local/sbin"
missing=""
command -v mosquitto >/dev/null || missing="$missing mosquitto"
command -v influxd >/dev/null || missing="$missing influxdb"
command -v nginx >/dev/null || missing="$missing nginx-light"
command -v espeak-ng >/dev/null || missing="$missing espeak-ng"
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || missing="$missing postgresql"
command -v npm >/dev/null || missing="$missing nodejs npm"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
command -v qemu-x86_64-static >/dev/null || missing="$missing qemu-user-static"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, their tests will skip:$missing" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# The tests start the servers themselves: do not let the packages start services.
policy=/usr/sbin/policy-rc.d
made=""
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"; made=yes; }
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/tmp/edgefleet-apt.log 2>&1 ||
    { echo "apt could not install$missing:" >&2; tail -n 3 /tmp/edgefleet-apt.log >&2; }
[ -z "$made" ] || rm -f "$policy"
exit 0

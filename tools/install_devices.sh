#!/bin/sh
# Install what the tests of trp-bench's devices need, as far as it goes: Debian or Ubuntu, as root or with sudo.
# Safe to run again. Whatever cannot be installed is named, and the tests that need it skip with the reason.
#
#     tools/install_devices.sh [PYTHON]        PYTHON has trp-export installed; default .venv/bin/python
here=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-$here/.venv/bin/python}
have() { command -v "$1" >/dev/null 2>&1; }
root=
[ "$(id -u)" = 0 ] || root="sudo -n"

wanted=
have qemu-aarch64 || wanted="$wanted qemu-user"
have adb || wanted="$wanted adb"
[ -x /usr/sbin/sshd ] || wanted="$wanted openssh-server"
have ssh || wanted="$wanted openssh-client"
have chromium || have google-chrome || wanted="$wanted chromium"
have node || wanted="$wanted nodejs"
have npm || wanted="$wanted npm"
have gcc || wanted="$wanted gcc libc6-dev"
if [ -n "$wanted" ] && have apt-get; then
  $root apt-get -qq update || echo "note: apt-get update failed"
  for package in $wanted; do
    $root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$package" >/dev/null 2>&1 ||
      echo "note: $package could not be installed; the tests that need it will skip"
  done
elif [ -n "$wanted" ]; then
  echo "note: no apt-get here; install$wanted by other means, or the tests that need them will skip"
fi
for part in arm web; do
  said=$("$python" "$here/tools/setup_$part.py") || said="note: tools/setup_$part.py failed"
  echo "$said" | tail -n 1
done
exit 0

#!/bin/sh
# Build the runner for `trp-bench --device adb` and put it beside a libonnxruntime.so.
#
#     tools/build_native_runner.sh LIBRARY [FOLDER]
#
# LIBRARY is the libonnxruntime.so for the phone: unpack jni/arm64-v8a/libonnxruntime.so from the archive
# com.microsoft.onnxruntime:onnxruntime-android of Maven Central (an .aar file is a zip file).
# The compiler is $CC if set, else the NDK's in $ANDROID_NDK_HOME for ARM64, else this computer's cc.
# FOLDER defaults to where trp-bench looks: $TRP_BENCH_CACHE/native or ~/.cache/trp-bench/native.
set -eu
if [ $# -lt 1 ] || [ ! -f "$1" ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
cache=${TRP_BENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trp-bench}
folder=${2:-$cache/native}
if [ -z "${CC:-}" ] && [ -n "${ANDROID_NDK_HOME:-}" ]; then
  for CC in "$ANDROID_NDK_HOME"/toolchains/llvm/prebuilt/*/bin/aarch64-linux-android24-clang; do :; done
  threads=  # Android's C library holds them
else
  threads=-lpthread
fi
mkdir -p "$folder"
"${CC:-cc}" -std=gnu11 -O2 "$here/trp_export/bench/runners/native_runner.c" -o "$folder/trp-runner" -ldl $threads
cp -L "$1" "$folder/libonnxruntime.so"
echo "$folder is ready"

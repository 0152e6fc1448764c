# SPDX-License-Identifier: Apache-2.0
#
# Sourced by tools/engines and tools/engines-vllm: venvs with pinned packages, made once, outside the
# source tree. $tool is the script's name, for its messages.
cache=${SKVQ_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/skvqd}

say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "$tool" "$*" >&2; exit 1; }

# venv_open NAME TORCH WORD...: sets $venv to the one of these words and this interpreter, $pip to its
# pip, and holds a lock until the script ends. If it is new, torch is in it and 1 is returned: the caller
# installs the rest and calls venv_done.
venv_open() {
	local name=$1 torch=$2 key
	key=$({ python3 --version; echo "${*:2}"; } | sha256sum | cut -c 1-12)
	venv=$cache/$name-$key
	pip=("$venv/bin/pip" --disable-pip-version-check -q)
	mkdir -p "$cache"
	exec 9>"$cache/lock-$name"
	flock -n 9 || { say "waiting for another $tool"; flock 9; }
	[ ! -e "$venv/whole" ] || return 0
	rm -rf "$venv"
	python3 -m venv "$venv" || die "python3 cannot make a venv in '$venv'"
	say "installing $torch"
	"${pip[@]}" install ${SKVQ_TORCH_INDEX:+--index-url "$SKVQ_TORCH_INDEX"} "$torch" >&2 ||
		die "pip could not install $torch"
	return 1
}

# A venv cannot be moved: a stamp, written last, tells that it is whole.
venv_done() { : >"$venv/whole"; }

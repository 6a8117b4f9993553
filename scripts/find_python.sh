#!/usr/bin/env bash
# find_python.sh VERSION...: the first interpreter of these versions that can make an environment, on PATH or of pyenv.
set -u
for version in "$@"; do
	root=${PYENV_ROOT:-$(command -v pyenv >/dev/null && pyenv root)}
	for candidate in "$(command -v "python$version")" "${root:-/nowhere}"/versions/"$version".*/bin/python; do
		if "$candidate" -c "import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
			echo "$candidate"
			exit 0
		fi
	done
done
echo "no Python of ${*// / or } was found on PATH or under pyenv; install one, or give make its path: COMPILED_PYTHON=..." >&2
exit 1

"""Shell commands that tell uv what pip is told by its files and its environment: the same packages for both."""

import ast
import shlex
import subprocess
import sys

NAMES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "cert": ("SSL_CERT_FILE", " "),
}

told = {}
listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
for line in listed.stdout.splitlines():
    where, _, value = line.partition("=")
    section, _, option = where.rpartition(".")
    if option in NAMES and (section == ":env:" or option not in told):  # the environment goes before the files
        told[option] = ast.literal_eval(value)
for option, value in told.items():
    name, between = NAMES[option]
    print(f"export {name}={shlex.quote(between.join(value.split()))}")
# As pip: every index counts alike, and no early version where there is another.
print("export UV_INDEX_STRATEGY=unsafe-best-match UV_PRERELEASE=disallow")

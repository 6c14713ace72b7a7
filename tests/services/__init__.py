"""Real servers that tests start for themselves, each in a directory of its own, gone at the end.

`install.sh` installs what they need on Debian.
"""

"""On PYTHONPATH, it makes every inference server that starts have the bad backend as `preview`.

Python imports a module of this name at its start, in each process of the installation.
"""

import sys

if "stillreel.inference.server" in sys.orig_argv and "stillreel.process" not in sys.orig_argv:
    from tests.bad_backend import install

    install()

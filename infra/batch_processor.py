"""The weekly script of the first design document: `python infra/batch_processor.py [--explain]`.

It is `stillreel drain a100`, which a cron may as well call itself; see docs/fleet.md.
"""

from __future__ import annotations

import sys

from stillreel.cli import main

if __name__ == "__main__":
    sys.argv[1:] = ["drain", *sys.argv[1:]]
    main()

"""`python -m kpipe.run EXPERIMENT.yaml [KEY=VALUE]...`, the same as `kpipe run`. Kept short: the rest is importable."""

import sys

from kpipe.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))

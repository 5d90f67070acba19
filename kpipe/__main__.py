"""`python -m kpipe VERB`, the same as `kpipe VERB`."""

import sys

from kpipe.cli import main

if __name__ == "__main__":
    sys.exit(main())

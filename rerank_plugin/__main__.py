"""`python -m rerank_plugin` is `rerank-plugin`."""

import sys

from rerank_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

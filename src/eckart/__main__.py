"""`python -m eckart`, and so `torchrun -m eckart`: the command line."""

import sys

from eckart.cli import main

if __name__ == "__main__":
    sys.exit(main())

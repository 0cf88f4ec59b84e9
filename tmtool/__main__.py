"""`python -m tmtool`."""

from tmtool.cli import main

main()

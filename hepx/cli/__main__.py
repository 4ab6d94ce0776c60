"""`python -m hepx.cli` is `hepx`."""

from hepx.cli import main

main()

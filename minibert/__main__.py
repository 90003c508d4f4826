"""python -m minibert: the command line without an installed entry point."""

from minibert.cli import main

main()

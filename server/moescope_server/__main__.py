"""`python -m moescope_server` is `moescope`."""

from moescope_server.cli import main

main()

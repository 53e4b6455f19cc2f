"""The local web app and the command line of moescope."""

"""`python -m upsnet`: the command line."""

from upsnet.command_line.main import main

main()

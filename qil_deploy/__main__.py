"""`python -m qil_deploy` is the command line."""

from qil_deploy.commands import main

main()

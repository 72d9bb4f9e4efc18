"""`python -m qil_deploy.export` is `python -m qil_deploy export`."""

import sys

from qil_deploy.commands import main

main(["export", *sys.argv[1:]])

"""`python -m qil_deploy.export` is `python -m qil_deploy export`."""

from qil_deploy.__main__ import start

if __name__ == "__main__":
    start("export")

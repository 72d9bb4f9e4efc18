"""What a terminal is shown: text from files escaped and cut, tables as wide as the terminal, progress.

Commands import rich through here alone (a contract in pyproject.toml), so that none can print what a file says as it
stands there.
"""

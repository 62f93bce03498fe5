"""`python -m lmflow`: the command, where it is not on the path."""

from lmflow.cli import main

if __name__ == "__main__":
    main()

"""`python -m muomni` is the `muomni` command."""

from muomni.cli import main

if __name__ == "__main__":
    main()

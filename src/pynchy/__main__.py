"""`python -m pynchy` is the same as `pynchy`."""

from pynchy.cli import main

if __name__ == "__main__":
    main()

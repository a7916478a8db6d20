"""``python -m blockwright``."""

from blockwright.cli import main

if __name__ == "__main__":
    main()

"""``python -m masksub`` is the ``masksub`` command."""

from masksub.cli import main

if __name__ == "__main__":
    main()
